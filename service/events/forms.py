"""The forms of a deployment event: CDEvents (inside CloudEvents or bare) and a plain JSON form. Their JSON Schemas are
generated into ``config/schemas``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]
Text = Annotated[str, StringConstraints(max_length=2048)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class CanaryData(_Form):
    """``customData.canary``: what CDEvents has no field for. All optional; none can widen what a target allows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    namespace: Name | None = None
    stable_version: Name | None = Field(default=None, alias="stableVersion")
    canary_version: Name | None = Field(default=None, alias="canaryVersion")
    policy: Name | None = None
    strategy: Name | None = None
    """Another word for ``policy``."""
    initial_weight: Annotated[int, Field(ge=1, le=100)] | None = Field(default=None, alias="initialWeight")


class CustomData(_Form):
    """``customData``: anything; only ``canary`` is read."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    canary: CanaryData = CanaryData()


class Context(_Form):
    """A CDEvent's context."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    id: Id
    source: Source
    type: Annotated[str, StringConstraints(max_length=256)]
    specversion: Annotated[str, StringConstraints(max_length=32)] | None = None
    version: Annotated[str, StringConstraints(max_length=32)] | None = None
    """The name of ``specversion`` before CDEvents 0.5."""
    timestamp: Annotated[AwareDatetime, Field(strict=False)]
    chain_id: Id | None = Field(default=None, alias="chainId")


class Environment(_Form):
    """Where it happened."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    id: Name


class Content(_Form):
    """A service event's content."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    environment: Environment | None = None
    artifact_id: Text | None = Field(default=None, alias="artifactId")


class Subject(_Form):
    """The service: ``namespace/name``, or a name with the namespace in ``customData.canary``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    id: Id
    content: Content = Content()


class CDEvent(_Form):
    """A CDEvents service event of any 0.x version."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    context: Context
    subject: Subject
    custom_data: CustomData = Field(default=CustomData(), alias="customData")


class PlainEvent(_Form):
    """The plain form, for a shell script: one flat JSON object. Unknown keys are refused, so that a typo shows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    event: Literal["service.deployed", "service.upgraded", "service.rolledback", "service.removed"]
    namespace: Name
    service: Name
    version: Name | None = None
    stable_version: Name | None = None
    artifact: Text = ""
    environment: Annotated[str, StringConstraints(max_length=253)] = ""
    policy: Name | None = None
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    id: Id | None = None
    """Without an id, the same bytes are the same event."""
    source: Source = "plain"
    time: Annotated[AwareDatetime | None, Field(strict=False)] = None
    """Without a time, the record's own."""


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema by file name."""
    return {
        "event-cdevent.schema.json": CDEvent.model_json_schema(by_alias=True),
        "event-plain.schema.json": PlainEvent.model_json_schema(by_alias=True),
    }
