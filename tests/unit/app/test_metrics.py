"""Own metrics: what the database counts is shown by one and only while it is fresh; failures have a reason."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import generate_latest

from service.app import metrics
from service.app.metrics import Counted, OwnMetrics
from service.app.observed_store import observed
from service.model.instruction import Lane
from service.model.rollout import Phase
from service.ring.ports import Unavailable
from service.ring.store import Conflict
from tests.stories import START
from tests.unit.dispatch.test_dispatcher import Outside

COUNTED = Counted(
    at=START,
    owed=dict.fromkeys(Lane, (0, None)) | {Lane.PAGES: (3, START - timedelta(seconds=90))},
    rollouts={Phase.PROGRESSING: 2},
    overdue_n=5,
    overdue_since=START - timedelta(seconds=40),
)


def test_what_is_owed_and_overdue_is_shown_with_its_age() -> None:
    own = OwnMetrics("1")
    own.counted.show(COUNTED)

    def value(name: str, **labels: str) -> float | None:
        return own.registry.get_sample_value(name, labels)

    assert value("serinus_owed_instructions", lane="pages") == 3
    assert value("serinus_owed_oldest_seconds", lane="pages") == 90
    assert value("serinus_owed_oldest_seconds", lane="retreat") == 0
    assert value("serinus_windows_overdue") == 5
    assert value("serinus_windows_overdue_oldest_seconds") == 40
    assert value("serinus_rollouts", phase="progressing") == 2
    assert value("serinus_rollouts", phase="promoted") == 0


def test_a_replica_that_does_not_count_shows_nothing_of_it() -> None:
    own = OwnMetrics("1")
    own.counted.show(COUNTED)
    own.counted.show(None)
    assert own.registry.get_sample_value("serinus_windows_overdue") is None
    assert own.registry.get_sample_value("serinus_owed_instructions", {"lane": "pages"}) is None


def test_numbers_that_could_not_be_counted_anew_are_not_shown_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnMetrics("1")
    own.counted.show(COUNTED)
    monkeypatch.setattr(metrics, "COUNTED_FOR_S", 0.0)
    assert own.registry.get_sample_value("serinus_windows_overdue") is None


class Failing:
    """A store whose calls fail as told."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def rollbacks_since(self, moment: object) -> int:
        raise self.error

    async def commit(self, changes: object, **_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"), [(Unavailable("x"), "unavailable"), (Conflict("x"), "conflict"), (ValueError("x"), "other")]
)
async def test_a_failed_call_of_the_store_is_counted_by_its_reason_and_raised(error: Exception, reason: str) -> None:
    own = OwnMetrics("1")
    store = observed(Failing(error), own, Outside(), grace_s=0)  # type: ignore[arg-type]
    for call in (store.rollbacks_since(START), store.commit([])):
        with pytest.raises(type(error)):
            await call
    for name in ("rollbacks_since", "commit"):
        labels = {"call": name, "reason": reason}
        assert own.registry.get_sample_value("serinus_store_errors_total", labels) == 1


def test_questions_to_a_metric_store_are_counted_by_what_came_of_them() -> None:
    own = OwnMetrics("1")
    for outcome in ("ok", "ok", "timeout", "early", "open", "open"):
        own.asked("eu", outcome, 0.5)

    def value(name: str, **labels: str) -> float | None:
        return own.registry.get_sample_value(f"serinus_{name}", {"cluster": "eu", **labels})

    assert value("query_seconds_count") == 4
    assert (value("query_errors_total", reason="timeout"), value("query_errors_total", reason="open")) == (1, 2)
    assert value("query_errors_total", reason="ok") is None
    assert value("query_errors_total", reason="early") is None


def test_every_name_is_in_base_units_and_counters_end_in_total() -> None:
    own = OwnMetrics("1")
    own.counted.show(COUNTED)
    for family in own.registry.collect():
        assert not family.name.endswith(("_ms", "_s", "_minutes", "_kb")), family.name
        assert family.documentation
    assert b"serinus_build_info" in generate_latest(own.registry)


def test_what_retention_does_is_counted_by_kind() -> None:
    own = OwnMetrics("1")
    own.retention.pruned("windows", 500)
    own.retention.pruned("windows", 7)
    own.retention.exported(2)
    own.retention.export_fails(True)
    own.retention.looked(START, {"rollouts": 5.0})

    def value(name: str, **labels: str) -> float | None:
        return own.registry.get_sample_value(name, labels)

    assert value("serinus_pruned_rows_total", kind="windows") == 507
    assert value("serinus_exported_rollouts_total") == 2
    assert value("serinus_export_failing") == 1
    assert value("serinus_retention_last_run_timestamp_seconds") == START.timestamp()
    assert value("serinus_oldest_kept_timestamp_seconds", kind="rollouts") == 5
