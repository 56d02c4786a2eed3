"""All gates behind the port: each instruction goes to the adapter of its gate in its cluster."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from service.model.gates.report import Candidate, GateReport
from service.model.instruction import RunGate
from service.preflight.report import could_not_look

logger = logging.getLogger(__name__)

Look: TypeAlias = Callable[[Any, Any, Candidate], Awaitable[GateReport]]
"""(the policy's rule, the target's subject, the release) -> the gate's answer; the first two are of the gate's own."""


class PreflightGates:
    """Implements ``ring.ports.Gates``."""

    def __init__(self, looks: Mapping[str, Mapping[str, Look]]) -> None:
        """``looks`` are adapters by cluster and gate."""
        self._looks = looks

    async def look(self, order: RunGate) -> GateReport:
        """See ``Gates.look``."""
        gate = order.rule.gate
        looks = self._looks.get(order.service.cluster, {})
        look = looks.get(gate)
        if look is None:
            known = ", ".join(sorted(looks)) or "none"
            return could_not_look(gate, f"this service has no such gate; known: {known}.", "Mend the policy.")
        subject = getattr(order.subjects, gate)
        if subject is None:
            why = (
                f"the target of {order.service} does not say where gate {gate} finds what it looks at, "
                f"or names it by a version that the event does not give."
            )
            return could_not_look(gate, why, f"See preflight.{gate} of the target; events should name both versions.")
        try:
            return await look(order.rule, subject, order.candidate)
        except Exception as error:  # a fault of ours must not pass a candidate, nor stop the lane
            logger.exception("gate %s failed", gate, extra={"action": "gate_failed", "rollout": order.rollout})
            why = f"the look failed unforeseen ({type(error).__name__}); the service's log has the traceback."
            return could_not_look(gate, why, "Report it; a person can go on without the gate by resuming.")
