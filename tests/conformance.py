"""Where the conformance data is: read in place, never copied. Tests that need it say so and skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("SERINUS_CONFORMANCE", Path(__file__).parents[2] / "shared" / "conformance"))


def conformance(name: str) -> Path:
    """A file or folder of the data; skips the test where there is none."""
    if not (ROOT / name).exists():
        pytest.skip(f"no conformance data at {ROOT / name}; set SERINUS_CONFORMANCE to its folder")
    return ROOT / name
