"""What a simulated world is made of: its size, the faults that it knows, and how long they last. All from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

FAULTS: Mapping[str, str] = {
    "crash": "a replica was killed at some moment",
    "crash at an effect": "a replica was killed right before or after a call to the outside",
    "pause": "a replica was stopped, and went on later where it stood",
    "pause at an effect": "a replica was stopped right before or after a call to the outside, and went on later",
    "clock": "a machine's clock was set",
    "store.outage": "the database was away for a while",
    "store.error": "the database failed one call",
    "store.lost": "the database committed and the answer was lost",
    "store.slow": "the database took long over one call",
    "api.outage": "an API server was away for a while",
    "api.error": "an API server answered 500",
    "api.throttled": "an API server answered 429",
    "api.conflict": "an API server answered 409",
    "api.lost": "an API server did as told and the answer was lost",
    "api.hang": "an API server never answered",
    "api.slow": "an API server took long over one call",
    "api.late": "an API server did as told long after the caller had given up",
    "pager.outage": "the pager was away for a while",
    "pager.error": "the pager failed one call",
    "pager.lost": "the pager took a page and the answer was lost",
    "pager.hang": "the pager never answered",
    "bus.outage": "the decisions' topic was away for a while",
    "bus.error": "the decisions' topic failed one record",
    "bus.lost": "the decisions' topic took a record and the answer was lost",
    "bus.hang": "the decisions' topic never answered",
    "metrics.outage": "a metric store was away for a while",
    "metrics.error": "a metric store failed one question",
    "metrics.slow": "a metric store took long over one question",
    "gates.outage": "what the gates look at was away for a while",
    "gates.error": "a gate could not look",
    "gates.lost": "what a gate had seen was lost",
    "gates.hang": "a gate never heard an answer",
    "kafka.outage": "the events' brokers were away for a while",
    "kafka.error": "the events' brokers failed one call",
    "kafka.lost": "the offsets were committed and the answer was lost",
    "kafka.rebalance": "the consumer group was shared out anew",
    "kafka.duplicate": "an event was delivered twice",
    "kafka.disorder": "an event came late, or on another partition than usual",
    "kafka.poison": "a record could not be read",
    "hand": "somebody changed weights by hand",
    "person": "a person gave an order",
    "second thoughts": "a replica's first look at the route was held up, and a person rolled back meanwhile",
    "freeze": "somebody turned the kill switch",
    "api.forbidden": "an API server refused a write for good",
    "late words": "a withdrawal named a version that a newer one had replaced",
    "mending": "a person paused, mended what a gate was just failing, and resumed before its answer was told",
}
"""Every kind of fault, and the sentence that says what one of it is."""


@dataclass(frozen=True)
class Plan:
    """One world. The same plan always tells the same story."""

    seed: int
    replicas: int
    services: int
    clusters: int
    faults: frozenset[str]
    sick_s: float
    """Faults happen until then; afterwards the world is well."""
    mutant: str = ""
    """A fault planted in the product itself, to see that it is caught."""

    @classmethod
    def of(cls, seed: int, mutant: str = "") -> Plan:
        """The world of a seed. Each knows only some faults: a fault that is rare among all others is common alone."""
        dice = Random(f"plan {seed}")
        share = dice.choice((0.3, 0.6, 0.9))
        return cls(
            seed=seed,
            replicas=dice.choice((2, 2, 2, 3, 3, 4, 5)),
            services=dice.choice((1, 2, 3, 3, 4)),
            clusters=dice.choice((1, 1, 1, 2)),
            faults=frozenset(kind for kind in FAULTS if dice.random() < share),
            sick_s=dice.choice((200.0, 400.0, 600.0)),
            mutant=mutant,
        )

    def without(self, kind: str) -> Plan:
        """The same world without one kind of fault."""
        return replace(self, faults=self.faults - {kind})

    @property
    def command(self) -> str:
        """What repeats it."""
        usual = Plan.of(self.seed)
        parts = [f"python -m tests.simulation --seed {self.seed}"]
        for name, mine, theirs in (
            ("replicas", self.replicas, usual.replicas),
            ("services", self.services, usual.services),
            ("clusters", self.clusters, usual.clusters),
            ("sick", f"{self.sick_s:g}", f"{usual.sick_s:g}"),
        ):
            if mine != theirs:
                parts.append(f"--{name} {mine}")
        if self.faults != usual.faults:
            parts.append("--faults " + (",".join(f"'{kind}'" for kind in sorted(self.faults)) or "none"))
        if self.mutant:
            parts.append(f"--mutant '{self.mutant}'")
        return " ".join(parts)
