"""Retention on the real stores: what goes, what stays, that little goes at once, and that nothing goes unexported."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.model.names import RolloutId
from service.model.rollout import Phase
from service.model.stimulus import Verb
from service.ring.ports import Unavailable
from service.ring.store import Change, RolloutFilter, ServiceHead
from service.storage import archive
from service.storage import retention as room
from service.storage import store as store_module
from service.storage import tables as t
from service.storage.archive import ArchiveError, check, line_of, lines_of
from service.storage.opening import open_store, open_to_read
from service.storage.retention import Ages, Retention
from service.storage.store import SqlStore
from tests.contract.store.stories import keep
from tests.real.parts import postgres
from tests.stories import SERVICE, START, Story, lean

DAY_S = 86400.0
AGES = Ages(windows_s=14 * DAY_S, rollouts_s=90 * DAY_S, seen_events_s=30 * DAY_S, instructions_s=3 * DAY_S)


class Clock:
    """Stands still; remembers every pause, and lets ``meanwhile`` happen in it."""

    def __init__(self) -> None:
        self.at = START
        self.pauses_n = 0

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.pauses_n += 1
        await asyncio.sleep(0)


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.exported_n = 0
        self.fails: bool | None = None
        self.oldest: Mapping[str, float] = {}

    def pruned(self, kind: str, rows_n: int) -> None:
        self.rows[kind] = self.rows.get(kind, 0) + rows_n

    def exported(self, rollouts_n: int) -> None:
        self.exported_n += rollouts_n

    def export_fails(self, fails: bool) -> None:
        self.fails = fails

    def looked(self, at: datetime, oldest: Mapping[str, float]) -> None:
        self.oldest = oldest


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'serinus.db'}" if request.param == "sqlite" else postgres.shared().database()


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    opened = await open_store(url)
    yield opened
    await opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "exports"
    made.mkdir()
    return made


class Kept:
    """A retention with its clock and what it told."""

    def __init__(self, store: SqlStore, *, export_dir: Path | None = None, teaching_n: int = 0, replica: str = "a"):
        self.clock = Clock()
        self.told = Told()
        self.it = Retention(
            store, self.clock, AGES, self.told,
            replica=replica, every_s=3600, teaching_n=teaching_n, export_dir=export_dir,
        )  # fmt: skip

    async def after(self, days: float) -> None:
        """A turn so many days after the start."""
        self.clock.at = START + timedelta(days=days)
        await self.it.turn()


def service(name: str) -> dict[str, Any]:
    return {"service": SERVICE.model_copy(update={"name": name})}


def ended(name: str = "ended", windows_n: int = 3) -> Story:
    """A rollout that a person has rolled back."""
    story = Story(id=f"e-{name}", rollout=f"r-{name}", **service(name)).progressing()
    for _ in range(windows_n):
        story.window(**lean(2))
    return story.person(Verb.ROLLBACK).written()


async def settle(store: SqlStore, *, at_s: float = START.timestamp()) -> None:
    """Everything owed is carried out at that moment."""
    async with store._engine.begin() as connection:
        await connection.execute(t.outbox.update().values(settled_at=at_s))


async def rows_n(store: SqlStore, table: sa.Table, rollout: RolloutId | None = None) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    if rollout is not None:
        query = query.where(table.c.rollout == rollout)
    return int((await store.read("count", query))[0][0])


async def test_windows_go_first_then_journal_and_rollout_and_the_newest_event_never(store: SqlStore) -> None:
    story = ended()
    assert story.state.phase is Phase.ROLLED_BACK
    await keep(store, story)
    await settle(store)
    await store.commit([], heads=[ServiceHead(story.state.service, START, "e1", 7)])
    kept, rollout = Kept(store), story.state.id
    await kept.after(13)
    assert await rows_n(store, t.windows) == 3
    await kept.after(15)
    assert (await rows_n(store, t.windows), await rows_n(store, t.journal) > 0) == (0, True)
    await kept.after(89)
    assert (await store.load([rollout]))[rollout] == story.state
    await kept.after(91)
    for table in (t.rollouts, t.journal, t.windows, t.outbox, t.pruned):
        assert await rows_n(store, table) == 0, table.name
    assert story.state.service in await store.heads([story.state.service])
    assert (kept.told.rows["windows"], kept.told.rows["rollouts"]) == (3, 1)
    assert kept.told.rows["journal"] == story.state.journal_n


async def test_a_running_rollout_is_never_touched_however_old(store: SqlStore) -> None:
    story = Story().progressing().window()
    await keep(store, story)
    before = await store.history(story.state.id), await store.journal(story.state.id)
    await Kept(store).after(3650)
    assert (await store.history(story.state.id), await store.journal(story.state.id)) == before
    assert (await store.active([SERVICE]))[SERVICE] == story.state


async def test_age_counts_from_the_end_and_not_from_the_start(store: SqlStore) -> None:
    story = Story().progressing().window().pass_time(60 * DAY_S).person(Verb.ROLLBACK).written()
    await keep(store, story)
    await settle(store)
    await Kept(store).after(61)
    assert await rows_n(store, t.windows) == 1


async def test_what_still_owes_something_stays_whole_but_for_its_windows(store: SqlStore) -> None:
    story = ended()
    await keep(store, story)
    owed_n = sum(n for n, _ in (await store.owed_summary()).values())
    assert owed_n > 0
    await Kept(store).after(200)
    assert sum(n for n, _ in (await store.owed_summary()).values()) == owed_n
    assert len(await store.journal(story.state.id)) == story.state.journal_n


async def test_a_service_keeps_learning_from_its_last_promoted_releases(store: SqlStore) -> None:
    for n in range(5):
        state = Story(id=f"p{n}", rollout=f"r-p{n}").progressing().state
        at = START + timedelta(hours=n)
        finished = state.model_copy(update={"phase": Phase.PROMOTED, "event_at": at, "phase_since": at})
        await store.commit([Change(finished, None, monitor=bytes([n]))])
    await keep(store, ended())
    await settle(store)
    before = await store.past_monitors([SERVICE], last=3)
    await Kept(store, teaching_n=3).after(200)
    assert await store.past_monitors([SERVICE], last=9) == before == {SERVICE: [b"\x04", b"\x03", b"\x02"]}
    assert await rows_n(store, t.rollouts) == 3
    later = Kept(store, teaching_n=2)
    await later.after(201)
    assert later.told.rows["rollouts"] == 1


async def test_carried_out_instructions_and_ids_of_events_go_by_their_own_age(store: SqlStore) -> None:
    await keep(store, Story().ready())
    owed_n = await rows_n(store, t.outbox)
    await settle(store)
    await store.commit([], seen=[("/ci", "old", START), ("/ci", "new", START + timedelta(days=10))])
    kept = Kept(store)
    await kept.after(2)
    assert await rows_n(store, t.outbox) == owed_n
    await kept.after(4)
    assert await rows_n(store, t.outbox) == 0
    await kept.after(31)
    assert await store.unseen([("/ci", "old"), ("/ci", "new")]) == {("/ci", "old")}
    assert kept.told.oldest == {
        "rollouts": START.timestamp(), "seen_events": (START + timedelta(days=10)).timestamp(),
    }  # fmt: skip


async def test_a_transaction_deletes_little_and_others_write_between_two(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(room, "PAGE", 4)
    for n in range(9):
        await keep(store, ended(f"s{n}", windows_n=8))
    await settle(store)
    deleted: list[int] = [0]

    def executed(*sent: Any) -> None:
        if sent[2].startswith("DELETE"):
            deleted[-1] += sent[1].rowcount

    def committed(_: Any) -> None:
        if deleted[-1]:
            deleted.append(0)

    sa.event.listen(store._engine.sync_engine, "after_cursor_execute", executed)
    sa.event.listen(store._engine.sync_engine, "commit", committed)
    kept = Kept(store)
    others = iter(range(100_000))
    pause = kept.clock.sleep
    orders: list[str] = []

    async def sleep(seconds: float) -> None:
        """Somebody commits in every pause: the writer's place must be free."""
        await store.commit([], seen=[("/other", str(next(others)), kept.clock.at)])
        orders.append("commit")
        await pause(seconds)

    monkeypatch.setattr(kept.clock, "sleep", sleep)
    await kept.after(91)
    assert await rows_n(store, t.windows) == await rows_n(store, t.rollouts) == 0
    assert max(deleted) <= 10
    assert len(orders) >= len(deleted) - 1 >= 72 / 10


async def test_only_one_replica_does_it_until_its_lease_runs_out(store: SqlStore) -> None:
    await keep(store, ended())
    await settle(store)
    first, second = Kept(store), Kept(store, replica="b")
    await first.after(13)
    second.clock.at = first.clock.at + timedelta(seconds=1800)
    await second.it.turn()
    assert (second.told.rows, second.told.oldest) == ({}, {})
    await second.after(15)
    assert second.told.rows["windows"] == 3


async def test_a_turn_that_fails_in_a_way_that_nobody_foresaw_is_told_and_the_next_one_does_its_work(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(store, ended())
    await settle(store)
    kept = Kept(store)
    kept.clock.at = START + timedelta(days=91)
    turns: list[str] = []
    real = kept.it.turn

    async def turn() -> None:
        turns.append("turn")
        if len(turns) == 1:
            raise ValueError("nobody foresaw this")
        await real()

    async def sleep(seconds: float) -> None:
        if seconds == 3600 and len(turns) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(kept.it, "turn", turn)
    monkeypatch.setattr(kept.clock, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await kept.it.run()
    assert [
        one.exc_text
        for one in caplog.records
        if one.levelname == "ERROR" and "nobody foresaw this" in str(one.exc_text)
    ]
    assert await rows_n(store, t.rollouts) == 0


# --- exporting ------------------------------------------------------------------------------------------------------


def exported(folder: Path) -> list[bytes]:
    return [line for file in sorted(folder.iterdir()) for line in lines_of(file)]


async def test_what_is_deleted_lies_in_a_file_that_replays_to_the_same_state(store: SqlStore, folder: Path) -> None:
    stories = [ended(f"s{n}") for n in range(3)]
    for story in stories:
        await keep(store, story)
    await settle(store)
    kept = Kept(store, export_dir=folder)
    await kept.after(15)
    found = [check(line) for line in exported(folder)]
    assert {one.rollout for one in found} == {story.state.id for story in stories}
    assert all(one.intact and one.replayed for one in found), found
    await kept.after(91)
    assert await rows_n(store, t.rollouts) == 0
    assert len(exported(folder)) == kept.told.exported_n == 3
    assert kept.told.fails is False


async def test_a_crash_after_the_file_gives_a_second_copy_and_no_loss(
    store: SqlStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, ended())
    await settle(store, at_s=START.timestamp() + 14 * DAY_S)  # not old enough to be deleted themselves
    write, cut = store.write, True

    async def crashing(what: str, statements: Any) -> Any:
        if cut:
            assert exported(folder), "the file must be there before the first write that follows"
            raise Unavailable("cut off")
        return await write(what, statements)

    monkeypatch.setattr(store, "write", crashing)
    kept = Kept(store, export_dir=folder)
    with pytest.raises(Unavailable):
        await kept.after(15)
    assert await rows_n(store, t.windows) == 3
    cut = False
    await kept.after(15)
    assert await rows_n(store, t.windows) == 0
    copies = exported(folder)
    assert [check(line).replayed for line in copies] == [True, True]


@pytest.mark.parametrize("trouble", ["missing", "full", "full at the end"])
async def test_without_a_place_for_the_export_nothing_of_a_rollout_is_deleted(
    store: SqlStore, folder: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    await keep(store, ended())
    await settle(store)
    (folder / ".serinus-rollouts-x.jsonl.gz.part").touch()
    with monkeypatch.context() as patched:
        if trouble == "full":
            patched.setattr(gzip.GzipFile, "write", full)
        elif trouble == "full at the end":
            patched.setattr("os.fsync", full)
        kept = Kept(store, export_dir=folder / "gone" if trouble == "missing" else folder)
        kept.clock.at = START + timedelta(days=91)

        async def stop(seconds: float) -> None:
            if seconds == 3600:
                raise asyncio.CancelledError

        patched.setattr(kept.clock, "sleep", stop)
        with pytest.raises(asyncio.CancelledError):
            await kept.it.run()
    assert kept.told.fails is True
    assert await rows_n(store, t.outbox) == 0, "what is not exported goes on"
    assert (await rows_n(store, t.windows), await rows_n(store, t.rollouts)) == (3, 1)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "nothing of ended rollouts is deleted" in warning.getMessage()
    assert str(folder) in warning.getMessage()
    assert trouble == "missing" or list(folder.iterdir()) == []
    mended = Kept(store, export_dir=folder)
    await mended.after(91)
    assert (mended.told.fails, await rows_n(store, t.rollouts)) == (False, 0)


async def test_what_lost_its_windows_before_exports_were_wished_is_exported_with_what_it_has(
    store: SqlStore, folder: Path
) -> None:
    await keep(store, ended())
    await settle(store)
    await Kept(store).after(15)
    await Kept(store, export_dir=folder).after(91)
    (found,) = map(check, exported(folder))
    assert (found.intact, found.replayed, await rows_n(store, t.rollouts)) == (True, False, 0)
    assert "windows are not in the line" in found.said


@pytest.mark.parametrize("damage", ["a journal row", "a window", "a window of a newer release"])
async def test_a_rollout_that_cannot_be_read_is_named_and_kept_and_the_others_are_exported_and_go(
    store: SqlStore, folder: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small pieces and pages, so that a part of the line lies in the file when the damage is met.
    monkeypatch.setattr(archive, "PIECE_BYTES", 100)
    monkeypatch.setattr(store_module, "ROWS_PAGE", 1)
    names = ["a", "bad", "z"]
    for name in names:
        await keep(store, ended(name))
    await settle(store)
    w, j = t.windows, t.journal
    if damage == "a journal row":
        spoilt = j.update().where(j.c.rollout == "r-bad", j.c.n == 2).values(body="{}")
    else:
        packed = b"\x01\xff\xff\xff" if damage == "a window" else b"\xc8abc"
        spoilt = w.update().where(w.c.rollout == "r-bad", w.c.n == 2).values(packed=packed)
    await store.write("damage", [spoilt])
    kept = Kept(store, export_dir=folder)
    for days in (15, 91, 92):
        await kept.after(days)
        found = [check(line) for line in exported(folder)]
        assert [one.rollout for one in found] == ["r-a", "r-z"]
        assert all(one.replayed for one in found), found
    assert (await rows_n(store, t.rollouts), await rows_n(store, t.windows)) == (1, 3)
    assert kept.told.exported_n == 2
    told = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert len(told) == 3
    assert all(one.startswith("rollout r-bad is kept") and "restore it from a backup" in one for one in told)
    assert len(list(folder.iterdir())) == 1, "no part of a file is left"


async def test_where_no_rollout_can_be_read_no_file_is_made(store: SqlStore, folder: Path) -> None:
    await keep(store, ended())
    await settle(store)
    await store.write("damage", [t.windows.update().values(packed=b"")])
    await Kept(store, export_dir=folder).after(15)
    assert list(folder.iterdir()) == []
    assert await rows_n(store, t.windows) == 3


async def test_an_export_that_fails_in_a_way_that_nobody_foresaw_leaves_no_part_of_a_file(
    store: SqlStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, ended())
    await settle(store)
    stimuli = store.stimuli

    async def failing(rollout: RolloutId) -> AsyncIterator[tuple[int, str]]:
        async for one in stimuli(rollout):
            yield one
            raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(store, "stimuli", failing)
    with pytest.raises(RuntimeError):
        await Kept(store, export_dir=folder).after(15)
    assert list(folder.iterdir()) == []
    assert await rows_n(store, t.windows) == 3


async def whole(store: SqlStore, story: Story) -> bytes:
    return b"".join([piece async for piece in line_of(store, story.state.id, START)])


async def test_a_long_rollout_is_exported_a_page_at_a_time_and_unpacked_beside_the_loop(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = ended(windows_n=20)
    await keep(store, story)
    line = await whole(store, story)
    assert check(line).replayed
    read, unpack = store.read, store_module.unpack
    rows_n: list[int] = []
    threads: set[threading.Thread] = set()

    async def reading(what: str, query: Any) -> Any:
        rows = await read(what, query)
        rows_n.append(len(rows))
        return rows

    def unpacking(packed: bytes) -> str:
        threads.add(threading.current_thread())
        return unpack(packed)

    monkeypatch.setattr(store, "read", reading)
    monkeypatch.setattr(store_module, "unpack", unpacking)
    monkeypatch.setattr(store_module, "ROWS_PAGE", 3)
    monkeypatch.setattr(archive, "PIECE_BYTES", 1000)
    pieces = [piece async for piece in line_of(store, story.state.id, START)]
    assert b"".join(pieces) == line
    assert len(pieces) > 10
    assert max(rows_n) == 3
    assert threads
    assert threading.main_thread() not in threads


async def test_a_changed_line_is_found(store: SqlStore) -> None:
    story = ended()
    await keep(store, story)
    line = await whole(store, story)
    assert check(line).replayed
    for old, new, said in (
        (b'"headline":"', b'"headline":"x', "was changed"),
        (b'"journal": [{', b'"journal": [{"colour":1,', "not as this release knows it"),
        (b'"n_canary":60', b'"n_canary":61', "replay differs"),
        (b'"serinus_rollout": 1', b'"serinus_rollout": 2', "format 2 is not known"),
    ):
        # Behind the history's beginning for what is in the state and the history alike.
        place = line.index(b'"history"') if old == b'"n_canary":60' else 0
        changed = line[:place] + line[place:].replace(old, new, 1)
        found = check(changed)
        assert changed != line
        assert not found.intact
        assert said in found.said
    assert not check(b"[]").intact
    assert not check(b"{}\n").intact


async def test_a_running_service_can_be_read_beside_and_not_be_written(store: SqlStore, url: str) -> None:
    story = Story().progressing().window()
    await keep(store, story)
    beside = await open_to_read(url)
    assert [s.id for s in (await beside.rollouts(RolloutFilter())).rollouts] == [story.state.id]
    line = await whole(beside, story)
    assert check(line).replayed
    with pytest.raises(Unavailable):
        await beside.commit([], seen=[("/ci", "e1", START)])
    await beside.close()
    assert await store.unseen([("/ci", "e1")]) == {("/ci", "e1")}


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"serinus_rollout": 1}\n' * 1000)[:-20])
    with pytest.raises(ArchiveError, match="damaged, cut off"):
        list(lines_of(file))
