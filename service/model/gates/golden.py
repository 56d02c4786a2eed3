"""Golden requests: recorded requests sent to both versions before any traffic, and how far their answers may differ."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from service.model.value import Value

RequestsPath = Annotated[
    str,
    StringConstraints(
        max_length=253, pattern=r"^[A-Za-z0-9_${}][A-Za-z0-9._${}-]*(/[A-Za-z0-9_${}][A-Za-z0-9._${}-]*)*$"
    ),
]
"""A file below the folder of golden requests: relative, no part begins with a dot. May hold ``${service}`` and the
other names of a target's templates."""

BaseUrl = Annotated[
    str, StringConstraints(max_length=500, pattern=r"^https?://[A-Za-z0-9.${}_:\[\]-]+(/[A-Za-z0-9._~${}-]+)*/?$")
]
"""Where a server answers: scheme, host, port and perhaps the path before the request's own. No user, no query."""


class Protocol(StrEnum):
    """The forms in which a model server is asked and answers."""

    TENSORFLOW_SERVING = "tensorflow-serving"  # REST: predict, classify, regress
    KSERVE_V2 = "kserve-v2"  # the open inference protocol with JSON tensors; Triton speaks it too
    HTTP_JSON = "http-json"  # any JSON over HTTP


class Tolerance(Value):
    """How far an output of the canary may lie from stable's. Strings, booleans and whole numbers must be equal."""

    output: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Name of the output; ``*`` matches any run of characters. Whole numbers are compared with a tolerance only where
    this names their output by more than ``*``."""
    absolute: float = Field(default=1e-5, ge=0)
    """Allowed distance, in the output's own unit. The default is some hundred steps of float32 at 1."""
    relative: float = Field(default=1e-4, ge=0)
    """Allowed distance as a part of stable's value; it is added to ``absolute``. The default lets other kernels round
    float32 another way, and shows weights that were rounded to float16."""
    top_k: int | None = Field(default=None, ge=1, le=1000)
    """The last axis holds scores of classes whose first k must come in stable's order (1: the winner must be the
    same). Classes whose scores lie within the tolerance of one another may change places."""
    ranking_only: bool = False
    """Compare the order and not the scores; for scores whose scale is free."""
    ignored: bool = False
    """Never compare this output; for request ids, times and the like."""

    @model_validator(mode="after")
    def _ranking_says_how_far(self) -> Self:
        if self.ranking_only and self.top_k is None:
            raise ValueError("ranking_only needs top_k, the number of classes whose order counts")
        return self


class GoldenGate(Value):
    """How far the candidate's answers to golden requests may differ.

    An error, a NaN or infinite value, a missing output, another shape or type, where stable shows none, fails the gate
    whatever the rate. Requests that stable itself answers in two ways are counted apart: their values say nothing.
    """

    gate: Literal["golden"] = "golden"
    tolerances: Annotated[tuple[Tolerance, ...], Field(max_length=64)] = ()
    """The first whose ``output`` matches is used; outputs that none matches have the default tolerance."""
    max_difference_rate: float = Field(default=0.0, ge=0, lt=1)
    """Part of the compared requests whose answer may lie beyond the tolerance."""
    min_requests: int = Field(default=20, ge=1)
    """With fewer compared requests the gate could not look. If none differs, n requests show, at 95 % confidence, that
    less than 3/n of such requests do: 20 show 14 %, 60 show 5 %, 300 show 1 %."""
    max_unsteady_rate: float = Field(default=0.2, ge=0, lt=1)
    """Part of the requests that stable may answer in two ways; beyond it the gate could not look."""
    max_first_request_s: float | None = Field(default=None, gt=0)
    """The candidate's very first answer may take so long; None: it is told and not judged."""
    max_cold_start_s: float | None = Field(default=None, gt=0)
    """The candidate may take so long to be ready after the gate begins to look; None: told and not judged."""


class GoldenSubject(Value):
    """Where the recorded requests and both versions are, and what replaying may cost."""

    requests: RequestsPath
    """JSON lines, as ``service.preflight.golden.requests`` describes."""
    stable_url: BaseUrl
    canary_url: BaseUrl
    """Must lead to the candidate alone, before it gets traffic: a Service of its own, not the route that is split."""
    protocol: Protocol | None = None
    """None: told by each request's path."""
    concurrency: int = Field(default=4, ge=1, le=16)
    """Golden requests under way at once; each has one call under way, to stable or to the canary. It is the load that
    the gate puts on stable beside its traffic."""
    timeout_s: float = Field(default=10.0, gt=0, le=590)
    """For one answer."""
    first_timeout_s: float = Field(default=120.0, gt=0, le=590)
    """For the very first answer of each version, which may have to trace and compile."""
    ready_within_s: float = Field(default=300.0, ge=0, le=590)
    """How long both versions are waited for until they say that they are ready."""
    within_s: float = Field(default=540.0, gt=0, le=590)
    """For all of it together; a look at a gate is cut off after ten minutes."""
    max_answer_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=16 * 1024 * 1024)
    """Larger answers are not read. Four times ``concurrency`` of them may be in memory."""

    @field_validator("stable_url", "canary_url")
    @classmethod
    def _no_event_makes_a_host(cls, url: str) -> str:
        host = url.partition("://")[2].partition("/")[0]
        if "_version" in host.replace("{", "") and "$" in host:
            raise ValueError(
                "a version comes from an event and may hold dots, so it must not be part of a host; write the host "
                "out, or with ${service} and ${namespace}"
            )
        return url

    @model_validator(mode="after")
    def _two_servers(self) -> Self:
        if self.stable_url.rstrip("/") == self.canary_url.rstrip("/"):
            raise ValueError(
                f"stable_url and canary_url are both {self.stable_url}, so the same server would be compared with "
                "itself"
            )
        return self
