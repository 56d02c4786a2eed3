"""What must not matter does not: order of rollouts, batches, saving, empty windows and buckets, names of arms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyzers import Categories, Counts, Histogram, Monitor, MonitorConfig, Verdict, Window
from analyzers.reports import drift, mann_whitney
from tests.calibration.pod_streams import PodLaw, pod_windows
from tests.calibration.streams import Law, windows

CONFIG = MonitorConfig(planned_windows=20)
ROLLOUTS, LENGTH = 11, 12
SEEDS = st.integers(min_value=0, max_value=2**31)
Make = Callable[[int], list[Window]]


def by_arm(seed: int) -> list[Window]:
    return list(windows(Law(slower=1.1, canary=40, stable=160), ROLLOUTS, LENGTH, seed))


def by_pod(seed: int) -> list[Window]:
    return list(pod_windows(PodLaw(slower=1.1, pod_spread=0.03, replaced=True, canary_pods=2, stable_pods=6), ROLLOUTS,
                            LENGTH, seed))  # fmt: skip


def rows_of(window: Window, rows: NDArray[np.int64] | slice) -> Window:
    """The window of some rollouts only."""
    latency, errors, predictions = window.latency, window.errors, window.predictions
    return Window(
        latency and Histogram(latency.edges, np.asarray(latency.canary)[rows], np.asarray(latency.stable)[rows]),
        errors and Counts(*(np.asarray(getattr(errors, n))[rows] for n in Counts.__slots__)),
        predictions and Categories(np.asarray(predictions.canary)[rows], np.asarray(predictions.stable)[rows]),
        window.pod_age and tuple(np.asarray(x)[rows] for x in window.pod_age),
    )


def empty(window: Window) -> Window:
    """A window of the same shape in which nothing was requested; pods stay as old as they were."""
    latency, errors, predictions = window.latency, window.errors, window.predictions
    return Window(
        latency and Histogram(latency.edges, np.zeros_like(latency.canary), np.zeros_like(latency.stable)),
        errors and Counts(*(np.zeros_like(getattr(errors, n)) for n in Counts.__slots__)),
        predictions and Categories(np.zeros_like(predictions.canary), np.zeros_like(predictions.stable)),
        window.pod_age,
    )


def watch(monitor: Monitor, stream: list[Window]) -> Verdict:
    for window in stream:
        verdict = monitor.observe(window)
    return verdict


@pytest.mark.parametrize("make", [by_arm, by_pod])
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_the_order_of_rollouts_in_a_batch_does_not_matter(make: Make, seed: int) -> None:
    stream, order = make(seed), np.random.default_rng(seed).permutation(ROLLOUTS)
    plain, mixed = Monitor(CONFIG, ROLLOUTS), Monitor(CONFIG, ROLLOUTS)
    one, two = watch(plain, stream), watch(mixed, [rows_of(w, order) for w in stream])
    np.testing.assert_array_equal(one.log_evidence[order], two.log_evidence)
    np.testing.assert_array_equal(plain.state()[order], mixed.state())


@pytest.mark.parametrize("make", [by_arm, by_pod])
@given(seed=SEEDS, cut=st.integers(1, ROLLOUTS - 1), when=st.integers(1, LENGTH - 1))
@settings(max_examples=8, deadline=None)
def test_splitting_joining_and_restoring_batches_changes_no_bit(make: Make, seed: int, cut: int, when: int) -> None:
    stream = make(seed)
    whole = Monitor(CONFIG, ROLLOUTS)
    watch(whole, stream)
    early = Monitor(CONFIG, ROLLOUTS)
    watch(early, stream[:when])
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        part = Monitor.restore(CONFIG, early.state()[rows])
        watch(part, [rows_of(w, rows) for w in stream[when:]])
        parts.append(part.state())
    np.testing.assert_array_equal(np.concatenate(parts), whole.state())


@pytest.mark.parametrize("make", [by_arm, by_pod])
@given(seed=SEEDS, when=st.integers(1, LENGTH - 1))
@settings(max_examples=8, deadline=None)
def test_an_empty_window_is_blind_and_leaves_the_evidence_where_it_was(make: Make, seed: int, when: int) -> None:
    stream = make(seed)
    monitor = Monitor(CONFIG, ROLLOUTS)
    before = watch(monitor, stream[:when])
    after = monitor.observe(empty(stream[when - 1]))
    assert after.blind.all()
    np.testing.assert_allclose(after.log_evidence, before.log_evidence, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(after.rollback, before.rollback)


@given(seed=SEEDS, place=st.integers(1, 18))
@settings(max_examples=10, deadline=None)
def test_a_bound_that_splits_off_an_empty_bucket_changes_no_rank(seed: int, place: int) -> None:
    """Merging buckets is exact where one of them is empty: ranks do not move."""
    from analyzers.latency import rank_statistic

    (window, *_) = windows(Law(canary=40, stable=160), ROLLOUTS, 1, seed)
    assert window.latency
    a, b = (np.asarray(x, float).T for x in (window.latency.canary, window.latency.stable))
    wider = [np.insert(x, place, 0, axis=0) for x in (a, b)]
    for one, two in zip(rank_statistic(a, b)[:2], rank_statistic(*wider)[:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


@given(a=st.lists(st.integers(0, 60), min_size=6, max_size=6), b=st.lists(st.integers(0, 60), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_two_sided_reports_do_not_depend_on_which_arm_is_called_canary(a: list[int], b: list[int]) -> None:
    if not sum(a) or not sum(b):
        return
    with np.errstate(all="ignore"):
        there, back = mann_whitney(a, b), mann_whitney(b, a)
    assert there.p_value == pytest.approx(back.p_value, abs=1e-12)
    assert there.slower_probability == pytest.approx(1 - back.slower_probability, abs=1e-12)
    assert drift(a, b).jensen_shannon == pytest.approx(drift(b, a).jensen_shannon, abs=1e-12)
    assert drift(a, b).psi == pytest.approx(drift(b, a).psi, abs=1e-12)
