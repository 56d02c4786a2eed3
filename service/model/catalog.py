"""The catalogue: the policies, targets and clusters that operators have set, as one value for the core to pick from."""

from __future__ import annotations

from pydantic import Field, model_validator

from service.model.names import DnsName, Mode
from service.model.policy import Policy
from service.model.target import Target
from service.model.value import Value


class Catalog(Value):
    """All that an event can be resolved against."""

    mode: Mode = Mode.OBSERVE
    clusters: tuple[DnsName, ...] = ("default",)
    environments: dict[str, DnsName] = {}
    """Cluster by the environment that an event names. With a single cluster and no entry, everything goes there."""
    policies: dict[str, Policy] = {}
    targets: tuple[Target, ...] = Field(default=())
    """The first target whose patterns match is taken."""

    @model_validator(mode="after")
    def _known_names(self) -> Catalog:
        known = ", ".join(sorted(self.policies)) or "none"
        for target in self.targets:
            for name in (target.policy, *target.allowed_policies):
                if name not in self.policies:
                    raise ValueError(
                        f"target {target.namespace}/{target.service} names policy {name!r}; known policies: {known}"
                    )
        for environment, cluster in self.environments.items():
            if cluster not in self.clusters:
                raise ValueError(
                    f"environment {environment!r} names cluster {cluster!r}; known: {', '.join(self.clusters)}"
                )
        return self
