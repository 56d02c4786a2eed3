"""What operators have set in every simulated world, and what versions can really be."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any

from service.model.catalog import Catalog
from service.model.gates.report import Finding
from service.model.policy import Policy
from service.model.target import Target
from tests.simulation.outside import Truth

ROLLBACKS_PER_HOUR = 2


def policies() -> dict[str, Policy]:
    """Policies of minutes: one that acts by itself, one that asks people, and one that looks before any traffic."""
    common: dict[str, Any] = {
        "stages": [
            {"weight_percent": "first", "bake": "60s", "min_requests": 500},
            {"weight_percent": 50, "bake": "60s", "min_requests": 500},
        ],
        "window": "20s",
        "metrics": [
            {"name": "latency", "kind": "latency", "margin": 1.5},
            {"name": "errors", "kind": "errors", "margin": 3.0},
        ],
        "ready_timeout": "60s",
        "confirm_timeout": "60s",
        "drift_hold_off": "30s",
    }
    strict = {
        "name": "strict",
        "guards": [{"name": "error-rate", "metric": "errors", "above": 0.2, "windows": 2, "on_breach": "rollback"}],
        "on_harm": "rollback",
        "on_pause": {"budget": "60s", "then": "rollback"},
        "on_blind": {"budget": "100s", "then": "rollback"},
        "on_inconclusive": {"budget": "100s", "then": "rollback"},
    }
    careful = {
        "name": "careful",
        "on_harm": "pause_and_confirm",
        "on_pause": {"budget": "60s", "then": "hold"},
        "on_blind": {"budget": "100s", "then": "hold"},
        "on_inconclusive": {"budget": "100s", "then": "hold"},
    }
    gated = {
        **strict,
        "name": "gated",
        "preflight": [{"gate": "model"}, {"gate": "golden"}],
        "gate_timeout": "40s",
    }
    return {given["name"]: Policy.model_validate(common | given) for given in (strict, careful, gated)}


def catalog(clusters: Sequence[str]) -> Catalog:
    """Every service by itself; the third only recommends, and the first two return to stable."""

    def target(service: str, **changes: Any) -> Target:
        given: dict[str, Any] = {
            "namespace": "*",
            "service": service,
            "route": {
                "virtual_service": "${service}",
                "stable": {"host": "${service}", "subset": "stable"},
                "canary": {"host": "${service}", "subset": "canary"},
            },
            "readiness": {"deployment": "${service}-canary"},
            "metrics": "http",
            "policy": "strict",
            "allowed_policies": ["careful", "gated"],
        }
        return Target.model_validate(given | changes)

    return Catalog.model_validate(
        {
            "mode": "enforce",
            "clusters": clusters,
            "environments": {name: name for name in clusters},
            "policies": policies(),
            "targets": [
                target("svc-2", mode="recommend"),
                target("svc-3"),
                target("*", finish="return_to_stable"),
            ],
        }
    )


def truth(dice: Random, sick_s: float) -> Truth:
    """What a version really is: mostly good, else one of what can be wrong with it."""
    return dice.choice(
        (
            *[Truth()] * 6,
            Truth(slow=True),
            Truth(error_rate=0.5),
            Truth(error_rate=0.02),
            Truth(requests_a_window=20),
            Truth(blind=True),
            Truth(gates={"model": Finding.FAILED}),
            Truth(gates={"golden": Finding.FAILED}),
            Truth(gates={"golden": Finding.COULD_NOT_LOOK}),
            Truth(dries_up_at_s=dice.uniform(0, 2 * sick_s)),
        )
    )


def seconds(count: float) -> timedelta:
    """A length of time to the millisecond, as events carry it."""
    return timedelta(milliseconds=round(count * 1000))
