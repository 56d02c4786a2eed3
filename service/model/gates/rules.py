"""All gates: what a policy may ask of a candidate before any traffic, and what a target tells each of them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from service.model.gates.golden import GoldenGate, GoldenSubject
from service.model.gates.image import ImageGate, ImageSubject
from service.model.gates.model import ModelGate, ModelSubject
from service.model.gates.security import SecurityGate, SecuritySubject
from service.model.value import Value

GateRule: TypeAlias = Annotated[ImageGate | SecurityGate | ModelGate | GoldenGate, Field(discriminator="gate")]
"""One gate of a policy, with its limits."""


class GateSubjects(Value):
    """Where each gate finds what it looks at. A gate that finds nothing here could not look."""

    image: ImageSubject | None = None
    security: SecuritySubject | None = None
    model: ModelSubject | None = None
    golden: GoldenSubject | None = None


GateSubject: TypeAlias = ImageSubject | SecuritySubject | ModelSubject | GoldenSubject


def asks_the_candidate(rule: GateRule) -> bool:
    """True for a gate that asks the running candidate, which must be ready before."""
    return isinstance(rule, GoldenGate)
