"""A few seeded crash points on both databases; ``make crash`` has the thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.crashes import crash
from tests.real.parts.postgres import shared
from tests.real.rig import rig

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.parametrize(("database", "seed"), [("sqlite", 101), ("postgresql", 102)])
async def test_the_service_is_killed_at_seeded_points_and_loses_nothing(
    tmp_path: Path, database: str, seed: int
) -> None:
    url = shared().database() if database == "postgresql" else None
    async with rig(tmp_path, database=url) as real:
        done, found = await crash(real, points_n=30, seed=seed, services_n=40)
        print(f"{done.fell}; {found.ends}; {found.seen}")
        assert not found.broken
        assert done.points_n == 30
        # The load was there: effects of every kind had begun, and rollouts came to their ends.
        assert all(done.begun[effect] for effect in ("consume", "commit", "weight", "page", "publish", "window"))
        assert found.ends["promoted"] + found.ends["rolled_back"] > 20
