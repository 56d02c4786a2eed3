"""The one base of all values, and their one canonical JSON form.

Pydantic is used inside as well as at the borders because every value here is written to the journal or the outbox
and read back: one definition, one serialisation, and a replayed state that is equal byte for byte.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value: unknown keys and NaN are refused, equality is by content."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_timedelta="float")

    def to_json(self) -> str:
        """Canonical JSON: fields in their declared order, defaults included."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The value that ``to_json`` wrote; raises pydantic's ValidationError for anything else."""
        return cls.model_validate_json(text)


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"time {moment.isoformat()} has no zone; write it with one, for example {moment.isoformat()}Z")
    return moment.astimezone(UTC)


Utc = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment with a zone, kept in UTC."""


def from_epoch_s(seconds: float) -> datetime:
    """The moment that lies ``seconds`` after 1970-01-01T00:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC)
