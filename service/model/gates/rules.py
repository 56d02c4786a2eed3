"""What a policy asks of its gates, and what a target tells them: the lists of all gates."""

from __future__ import annotations

from service.model.names import DnsLabel
from service.model.value import Value


class GateRule(Value):
    """One gate of a policy: its name and its limits."""

    gate: DnsLabel

    @property
    def of_a_running_candidate(self) -> bool:
        """True for a gate that asks the candidate itself, which must be ready before."""
        return self.gate == "golden"


class GateSubjects(Value):
    """Where each gate finds what it looks at."""
