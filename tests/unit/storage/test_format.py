"""What is stored stays readable: the format's number, and the windows' packing."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service.model.instruction import INSTRUCTION
from service.model.journal import JournalEntry
from service.model.rollout import RolloutState
from service.model.stimulus import STIMULUS
from service.storage.packing import pack, unpack
from service.storage.tables import FORMAT
from tests.stories import Story

DIGEST_OF_FORMAT = {1: "74260ef2da793189"}
"""Of the JSON schemas of everything that is stored, by format."""

PACKED_BY_DICTIONARY_1 = bytes.fromhex(
    "0183161ce586bac638ca0d439a961b8678cb0d423149b0cca06ff2a75ea941792620a3e418c12147ef12c1d2d8d0c4dcd0c2c0d4145806"
    "981a0fde0202d2060200"
)


def without_words(schema: Any) -> Any:
    """The schema without titles and descriptions: what a reader accepts, not what it is told."""
    if isinstance(schema, dict):
        return {
            key: without_words(value)
            for key, value in schema.items()
            if not (key in ("title", "description") and isinstance(value, str))
        }
    return [without_words(value) for value in schema] if isinstance(schema, list) else schema


def test_a_change_of_what_is_stored_raises_the_format() -> None:
    schemas = [
        without_words(adapter.json_schema())
        for adapter in (TypeAdapter(RolloutState), TypeAdapter(JournalEntry), INSTRUCTION, STIMULUS)
    ]
    digest = hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()[:16]
    assert DIGEST_OF_FORMAT.get(FORMAT) == digest, (
        "Stored JSON has changed. The release before refuses keys that it does not know: if it is out, raise "
        "service.storage.tables.FORMAT and add the new digest here (see the rules in service/storage/migrations). "
        f"If format {FORMAT} is in no release yet, only write its digest anew: {digest}"
    )


@given(st.text())
def test_any_text_is_unpacked_as_it_was_packed(text: str) -> None:
    assert unpack(pack(text)) == text


def test_what_an_earlier_release_packed_is_read() -> None:
    assert unpack(PACKED_BY_DICTIONARY_1) == Story().progressing().window().facts[-1].to_json()


def test_a_window_takes_less_than_half_of_its_bytes() -> None:
    text = Story().progressing().window().facts[-1].to_json()
    assert len(pack(text)) < len(text) / 2
