"""The monitor: published quantities, exact continuation, invariances, and refusal of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analyzers import Categories, Counts, Histogram, Margins, Monitor, MonitorConfig, Window, placebo_sentence
from analyzers.errors import share_at
from analyzers.latency import rank_statistic
from tests.calibration import streams
from tests.conformance import conformance

EDGES = np.geomspace(0.005, 5.0, 19)
CONFIG = MonitorConfig(planned_windows=60, margins=Margins.none())


def windows(rollouts: int, n: int, seed: int, *, harm: float = 1.0) -> list[Window]:
    """Random windows, some rows of which are empty in some metrics."""
    rng = np.random.default_rng(seed)
    bucket_shares = rng.dirichlet(np.ones(20) * 3)
    class_shares = rng.dirichlet(np.ones(5) * 4)
    out = []
    for _ in range(n):
        n_c, n_s = rng.poisson(40, rollouts), rng.poisson(360, rollouts)
        n_c[rng.random(rollouts) < 0.1] = 0
        failed_c, failed_s = rng.binomial(n_c, min(1.0, 0.01 * harm)), rng.binomial(n_s, 0.01)
        out.append(
            Window(
                latency=Histogram(EDGES, rng.multinomial(n_c, bucket_shares), rng.multinomial(n_s, bucket_shares)),
                errors=Counts(failed_c, n_c, failed_s, n_s),
                predictions=Categories(rng.multinomial(n_c, class_shares), rng.multinomial(n_s, class_shares)),
            )
        )
    return out


def rows(window: Window, pick: Any) -> Window:
    """The same window for some of the rollouts."""
    assert window.latency
    assert window.errors
    assert window.predictions
    take = lambda x: np.asarray(x)[pick]  # noqa: E731
    lat, err, pred = window.latency, window.errors, window.predictions
    return Window(
        Histogram(EDGES, take(lat.canary), take(lat.stable)),
        Counts(take(err.canary), take(err.canary_total), take(err.stable), take(err.stable_total)),
        Categories(take(pred.canary), take(pred.stable)),
    )


def test_rank_statistic_equals_the_vectors_and_scipy() -> None:
    for case in json.loads(conformance("statistics_vectors.json").read_text())["rank"]:
        a, b = (np.array(case[arm], float)[:, None] for arm in ("canary", "stable"))
        w, v, _ = rank_statistic(a, b)
        assert w[0] == pytest.approx(case["W"], rel=1e-9)
        assert v[0] == pytest.approx(case["var_W"], rel=1e-9)
        n_a, n_b = a.sum(), b.sum()
        if not n_a or not n_b:
            continue  # scipy has no answer for an empty arm
        u = w[0] * (n_a + n_b) + n_a * n_b / 2
        places = np.arange(len(case["canary"]))
        ours = stats.mannwhitneyu(
            np.repeat(places, case["canary"]),
            np.repeat(places, case["stable"]),
            use_continuity=False,
            method="asymptotic",
        )
        assert u == pytest.approx(ours.statistic)
        assert 2 * stats.norm.sf(abs(w[0] / np.sqrt(v[0]))) == pytest.approx(ours.pvalue)


def test_the_error_share_at_an_odds_ratio_gives_the_vectors() -> None:
    for case in json.loads(conformance("statistics_vectors.json").read_text())["counts_log_e"]:
        (x_c, n_c), (x_s, n_s) = case["canary"], case["stable"]
        rho = share_at(np.array(n_c / (n_c + n_s)), case["margin_odds_ratio"])
        p1 = share_at(rho, case["odds_ratio"])
        log_e = x_c * np.log(p1 / rho) + x_s * np.log((1 - p1) / (1 - rho))
        assert log_e == pytest.approx(case["log_e"], rel=1e-9)


def test_a_monitor_restored_from_its_rows_continues_exactly() -> None:
    whole = Monitor(CONFIG, 6)
    broken = Monitor(CONFIG, 6)
    for i, window in enumerate(windows(6, 8, seed=3, harm=3.0)):
        one = whole.observe(window)
        if i % 3 == 2:
            broken = Monitor.restore(CONFIG, broken.state())
        two = broken.observe(window)
        np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    np.testing.assert_array_equal(whole.state(), broken.state())


def test_rows_can_be_reordered_split_and_joined_at_different_ages() -> None:
    listed = windows(8, 10, seed=5)
    whole = Monitor(CONFIG, 8)
    for window in listed:
        whole.observe(window)
    # The first four rows start three windows before the last four; then all go on together in another order.
    early, late = np.arange(4), np.arange(4, 8)
    a, b = Monitor(CONFIG, 4), Monitor(CONFIG, 4)
    for window in listed[:7]:
        a.observe(rows(window, early))
    for window in listed[:4]:
        b.observe(rows(window, late))
    order = np.array([6, 1, 4, 3, 0, 7, 2, 5])
    joined = Monitor.restore(CONFIG, np.concatenate([a.state(), b.state()])[order])
    for i in range(3):
        parts = [rows(listed[7 + i], early), rows(listed[4 + i], late)]
        joined.observe(_joined(parts, order))
    final = joined.state()[np.argsort(order)]
    np.testing.assert_array_equal(final[:4], whole.state()[:4])


def _joined(parts: list[Window], order: Any) -> Window:
    def cat(get: Any) -> Any:
        return np.concatenate([np.asarray(get(p)) for p in parts])[order]

    return Window(
        Histogram(EDGES, cat(lambda w: w.latency.canary), cat(lambda w: w.latency.stable)),
        Counts(
            *(cat(lambda w, n=n: getattr(w.errors, n)) for n in ("canary", "canary_total", "stable", "stable_total"))
        ),
        Categories(cat(lambda w: w.predictions.canary), cat(lambda w: w.predictions.stable)),
    )


def test_an_empty_window_leaves_the_evidence_as_it_was_and_is_blind() -> None:
    monitor = Monitor(CONFIG, 3)
    for window in windows(3, 5, seed=9):
        before = monitor.observe(window)
    zeros = np.zeros((3, 20), int)
    none = np.zeros(3, int)
    after = monitor.observe(
        Window(Histogram(EDGES, zeros, zeros), Counts(none, none, none, none), Categories(zeros[:, :5], zeros[:, :5]))
    )
    np.testing.assert_array_equal(before.log_evidence, after.log_evidence)
    assert after.blind.all()


def test_a_metric_that_was_not_collected_stands_still() -> None:
    monitor = Monitor(CONFIG, 2)
    first, second = windows(2, 2, seed=11)
    before = monitor.observe(first)
    after = monitor.observe(Window(errors=second.errors))
    np.testing.assert_array_equal(before.evidence["latency"].log_e, after.evidence["latency"].log_e)
    assert after.evidence["latency"].blind.all()
    assert after.blind.all()


def test_rollback_is_sticky() -> None:
    monitor = Monitor(CONFIG, 1)
    bad = Window(errors=Counts([30], [60], [5], [540]))
    good = Window(errors=Counts([0], [60], [5], [540]))
    for _ in range(5):
        verdict = monitor.observe(bad)
    assert verdict.rollback[0]
    for _ in range(50):
        verdict = monitor.observe(good)
    assert verdict.rollback[0]
    assert not verdict.safe[0]


def test_one_burst_of_errors_decides_nothing() -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60), 1)
    for _ in range(5):
        monitor.observe(Window(errors=Counts([0], [60], [1], [540])))
    assert not monitor.observe(Window(errors=Counts([60], [60], [1], [540]))).rollback[0]


def test_without_a_planned_length_the_boundary_is_the_provable_one() -> None:
    verdict = Monitor(MonitorConfig(false_rollback=0.02), 1).observe(Window(errors=Counts([0], [60], [1], [540])))
    assert verdict.log_threshold_rollback[0] == pytest.approx(np.log(50))


def test_warm_up_windows_compare_nothing() -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60, warmup_windows=2), 1)
    bad = Window(errors=Counts([60], [60], [0], [540]))
    assert monitor.observe(bad).blind[0]
    assert monitor.observe(bad).log_evidence[0] < -100
    assert monitor.observe(bad).log_evidence[0] > -10


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Window(errors=Counts([1], [0], [0], [5])), r"errors.canary at row 0 is 1, more than its total 0"),
        (Window(errors=Counts([-1], [5], [0], [5])), r"errors.canary\[0\] is -1"),
        (Window(errors=Counts([0.5], [5], [0], [5])), r"errors.canary\[0\] is 0.5"),
        (Window(errors=Counts([np.nan], [5], [0], [5])), r"errors.canary\[0\] is nan"),
        (Window(errors=Counts([1, 2], [5, 5], [0, 0], [5, 5])), "1 rows"),
        (Window(latency=Histogram([2.0, 1.0], [[1, 1, 1]], [[1, 1, 1]])), "latency.edges must ascend.*place 1"),
        (Window(latency=Histogram([1.0], [[1, 1, 1]], [[1, 1, 1]])), "latency.canary has 3 buckets"),
        (Window(predictions=Categories([[1, 2]], [[1, 2, 3]])), "predictions.canary has shape"),
        (Window(predictions=Categories([["a", "b"]], [["a", "b"]])), "must be numbers"),
        (Window(), "at least one metric"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(window: Window, words: str) -> None:
    monitor = Monitor(CONFIG, 1)
    before = monitor.state()
    with pytest.raises(ValueError, match=words):
        monitor.observe(window)
    np.testing.assert_array_equal(before, monitor.state())


def test_edges_that_change_are_refused() -> None:
    monitor = Monitor(CONFIG, 1)
    monitor.observe(Window(latency=Histogram([1.0], [[1, 1]], [[1, 1]])))
    with pytest.raises(ValueError, match="edges changed"):
        monitor.observe(Window(latency=Histogram([2.0], [[1, 1]], [[1, 1]])))


@pytest.mark.parametrize(
    "given", [{"false_rollback": 0}, {"planned_windows": 0}, {"weights": {"x": 1.0}}, {"warmup_windows": -1}]
)
def test_bad_configurations_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        MonitorConfig(**given)
    with pytest.raises(ValueError):
        Margins(latency=0.9)


def test_a_row_is_below_four_kibibytes() -> None:
    monitor = Monitor(CONFIG, 1)
    ten = np.full((1, 10), 6)
    monitor.observe(
        Window(
            Histogram(EDGES, np.full((1, 20), 3), np.full((1, 20), 27)),
            Counts([1], [60], [5], [540]),
            Categories(ten, ten * 9),
        )
    )
    assert monitor.state().nbytes < 4096


def test_importing_the_library_brings_no_heavy_package() -> None:
    heavy = ("pandas", "statsmodels", "scipy", "service")
    code = f"import sys, analyzers; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_more_classes_than_twelve_are_compared_with_the_rare_ones_as_one() -> None:
    rng = np.random.default_rng(17)
    shares = rng.dirichlet(np.ones(40))
    moved = np.roll(shares, 1)
    monitor = Monitor(MonitorConfig(planned_windows=60, margins=Margins.none()), 1)
    for _ in range(30):
        verdict = monitor.observe(
            Window(predictions=Categories([rng.multinomial(200, moved)], [rng.multinomial(1800, shares)]))
        )
    assert verdict.rollback[0]
    assert monitor.state().nbytes < 4096


def test_a_state_that_was_taken_does_not_change_with_the_monitor_nor_with_one_restored_from_it() -> None:
    monitor = Monitor(CONFIG, 1)
    window = Window(errors=Counts([9], [60], [5], [540]))
    monitor.observe(window)
    taken = monitor.state()
    kept = taken.copy()
    fork = Monitor.restore(CONFIG, taken)
    one, other = monitor.observe(window), fork.observe(window)
    np.testing.assert_array_equal(taken, kept)
    np.testing.assert_array_equal(one.log_evidence, other.log_evidence)


def test_a_row_with_nan_and_a_length_that_is_no_whole_number_are_refused() -> None:
    monitor = Monitor(CONFIG, 1)
    monitor.observe(Window(errors=Counts([0], [60], [5], [540])))
    row = monitor.state()
    row[0, -1] = np.nan
    with pytest.raises(ValueError, match="holds NaN in row 0"):
        Monitor.restore(CONFIG, row)
    for name in ("planned_windows", "warmup_windows"):
        for value in (float("nan"), 1.5, -1):
            with pytest.raises(ValueError, match=name):
                MonitorConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("slower", [1.2, 2.0, 10.0])
def test_the_interval_of_the_slow_down_holds_the_truth_for_large_ones_too(slower: float) -> None:
    monitor = Monitor(MonitorConfig(), 50)
    for window in streams.windows(streams.Law(slower=slower), 50, 10, seed=31):
        verdict = monitor.observe(Window(latency=window.latency))
    of = verdict.evidence["latency"]
    assert ((of.effect_low <= slower) & (of.effect_high >= slower)).mean() > 0.9


def test_pods_that_are_followed_in_groups_are_not_named() -> None:
    rng = np.random.default_rng(5)
    monitor = Monitor(MonitorConfig(planned_windows=60), 1)
    for _ in range(5):
        latency = [rng.multinomial(20, [0.3, 0.4, 0.3], (1, pods)) for pods in (2, 40)]
        failed = [np.zeros((1, pods), int) for pods in (2, 40)]
        total = [x.sum(-1) for x in latency]
        monitor.observe(
            Window(Histogram([0.1, 0.2], *latency), Counts(failed[0], total[0], failed[1], total[1]))
        )  # fmt: skip
    assert monitor.grouped
    assert monitor.odd_pods().shape == (1, 40)
    assert np.isnan(monitor.odd_pods()).all()
    assert "groups of stable pods" in (placebo_sentence(monitor) or "")


def test_arms_that_do_not_overlap_have_a_slow_down_that_is_a_number_and_no_upper_end() -> None:
    monitor = Monitor(MonitorConfig(), 1)
    for _ in range(20):
        of = monitor.observe(Window(Histogram([0.1, 0.2], [[0, 0, 60]], [[540, 0, 0]]))).evidence["latency"]
    assert np.isfinite(of.effect[0])
    assert of.effect_low[0] > 1.5
    assert of.effect_high[0] == np.inf
