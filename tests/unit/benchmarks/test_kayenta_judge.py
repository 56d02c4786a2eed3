"""The judge that the peer benchmark uses says what the real one said.

The vectors are inputs and verdicts of the real judge. Those of its parts that NetflixACAJudge-v1.0 never calls (mean
inequality, K-sigma, Cohen's d) have no counterpart here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.peers import kayenta_judge as kayenta
from tests.benchmarks.peers.kayenta import HIGH, _by_roots, high_scores
from tests.conformance import conformance

Case = Mapping[str, Any]


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    """All vectors; «NaN» as a number."""
    found: dict[str, Any] = json.loads(
        conformance("kayenta_vectors.json").read_text().replace('"NaN"', "NaN"), parse_constant=float
    )
    return found


def test_the_statistic_and_its_roots_are_those_of_the_real_test(vectors: dict[str, Any]) -> None:
    for case in vectors["wilcoxon_diff"]:
        x, y = np.array(case["x"]), np.array(case["y"])
        for call in case["calls"]:
            w = kayenta.statistic(x, y, call["mu"], call["quantile"])
            assert w == pytest.approx(call["expect"], abs=5e-6)  # upstream prints seven digits
    for case in vectors["mann_whitney"]:
        got = kayenta.mann_whitney(np.array(case["x"]), np.array(case["y"]), case["confidence"])
        assert_shift(got, case["observed"])


def test_the_intermediate_values_are_those_of_the_real_test(vectors: dict[str, Any]) -> None:
    for case in vectors["mann_whitney_intermediate"]:
        x, y, expect = np.array(case["x"]), np.array(case["y"]), case["expect"]
        for end, at in (("mu_min", x.min() - y.max()), ("mu_max", x.max() - y.min())):
            assert at == pytest.approx(expect[end], abs=1e-12)
            for z in ("z_lower", "z_upper"):
                got = kayenta.statistic(x, y, at, expect[z])
                assert got == pytest.approx(expect[f"wdiff({end},{z})"], abs=1e-6)
        shift = kayenta.mann_whitney(x, y, case["confidence"])
        assert shift.low == pytest.approx(expect["root_z_lower"], abs=1e-9)
        assert shift.high == pytest.approx(expect["root_z_upper"], abs=1e-9)
        assert shift.estimate == pytest.approx(expect["estimate"], abs=1e-9)


def test_every_label_is_the_real_judges(vectors: dict[str, Any]) -> None:
    cases = [*vectors["classifier_mann_whitney"], *vectors["community_cases"], *vectors["oracle_runs"]["cases"]]
    assert len(cases) == 161
    for case in cases:
        got = kayenta.classify(metric_of(case), case["control"], case["experiment"])
        observed = case["observed"]
        assert (got.label, got.critical) == (observed["classification"], observed["critical"]), case.get("name")
        assert got.deviation == pytest.approx(observed["deviation"], rel=1e-12, nan_ok=True), case.get("name")
        constant = len(set(case["control"])) == 1 == len(set(case["experiment"]))
        if got.shift is not None and not constant:  # constants get noise, which the real judge does not seed
            assert_shift(got.shift, observed)


def test_whole_judgements_give_the_real_score(vectors: dict[str, Any]) -> None:
    for case in vectors["judge_runs"]["cases"]:
        metrics = [(judged_metric(m), m["control"], m["experiment"]) for m in case["metrics"]]
        got = kayenta.judge(metrics, weights=case["groupWeights"], pass_at=case["pass"], marginal_at=case["marginal"])
        observed = case["observed"]
        assert [[m.label, m.critical] for m in got.metrics] == [m[:2] for m in observed["metrics"]]
        assert got.score == pytest.approx(observed["score"], abs=1e-9)
        assert got.label == observed["scoreClassification"]


def test_scores_add_up_as_the_real_ones_do(vectors: dict[str, Any]) -> None:
    for case in vectors["scorer"]:
        labels = [(m["classification"], m["groups"], m["critical"]) for m in case["metrics"]]
        assert kayenta.score(labels, case["group_weights"]) == case["expect"]["summary_score"], case["name"]
    for case in vectors["scorer_observed_extra"]["cases"]:
        labels = [tuple(m) for m in case["metrics"]]
        assert kayenta.score(labels, case.get("weights", {})) == case["summary"], case


def test_effect_sizes_outliers_and_missing_points_are_the_real_ones(vectors: dict[str, Any]) -> None:
    sizes = {"mean_ratio": kayenta.mean_ratio, "cles": kayenta.cles}
    seen = [case for case in vectors["effect_size"] if case["measure"] in sizes]
    assert len(seen) == 9
    for case in seen:
        got = sizes[case["measure"]](np.array(case["experiment"]), np.array(case["control"]))
        assert got == pytest.approx(case["expect"], abs=case["abs_tol"], nan_ok=True), case["name"]
    found = [case for case in vectors["outlier_detector"] if case["detector"] == "iqr"]
    assert len(found) == 4
    for case in found:
        got_out = kayenta.outliers(np.array(case["values"]), case["param"], widened=case["reduce_sensitivity"])
        assert got_out.tolist() == case["expect_outlier"], case["name"]
    for case in vectors["transform"]:
        if "NaN" in case["name"] or "NAN" in case["name"]:
            metric = kayenta.Metric(replace_nan=case["name"].startswith("Replace"))
            got_points = kayenta.prepared(metric, case["values"]).tolist()
            assert got_points == case["expect"], case["name"]


def test_all_series_at_once_get_the_label_that_each_gets_by_itself() -> None:
    rng = np.random.default_rng(20261125)
    metric, labels = kayenta.Metric(direction="increase"), set()
    for n, m in ((1, 1), (2, 3), (4, 4), (10, 10), (25, 30)):
        for shift in (1.0, 1.3, 2.5):
            x, y = 50 * np.exp(rng.normal(0, 0.3, (60, n))) * shift, 50 * np.exp(rng.normal(0, 0.3, (60, m)))
            x[::3], y[::3] = rng.poisson(0.3 * shift, (20, n)) / 0.6, rng.poisson(0.3, (20, m)) / 0.6
            x[1::5, 0] = np.nan
            x[2::20], y[2::20] = 40.0 * shift, 40.0
            alone = [kayenta.classify(metric, b, a).label for a, b in zip(x, y, strict=True)]
            labels |= set(alone)
            assert (high_scores(x, y) >= HIGH).tolist() == [label == "High" for label in alone]
    assert labels == {"Pass", "High", "Nodata", "Error"}


def test_the_roots_of_all_series_are_those_of_each() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.poisson(1.0, (200, 20)) / 0.6, rng.poisson(0.5, (200, 25)) / 0.6
    low, estimate = _by_roots(x, y)
    alone = [kayenta.mann_whitney(*pair) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(low, [shift.low for shift in alone], rtol=0, atol=1e-12)
    np.testing.assert_allclose(estimate, [shift.estimate for shift in alone], rtol=0, atol=1e-12)


def assert_shift(got: kayenta.Shift, observed: Case) -> None:
    """The interval and estimate to the last digits, also where the root's tolerance decides them."""
    for mine, real in (
        (got.low, observed["ci_low"]), (got.high, observed["ci_high"]), (got.estimate, observed["estimate"])
    ):  # fmt: skip
        assert mine == pytest.approx(real, abs=1e-9, rel=1e-9, nan_ok=True)


def metric_of(case: Case) -> kayenta.Metric:
    """The settings of a classifier's vector, under either of the names that the file uses."""
    params = {**case, **case.get("params", {})}
    return kayenta.Metric(
        direction=params["direction"],
        replace_nan=params.get("nan_strategy") == "replace",
        critical=params["is_critical"],
        must_have_data=params.get("must_have_data", False),
        measure=params.get("measure") or params["effect_size_measure"],
        allowed=tuple(params.get("allowed") or params["effect_size_allowed_[decrease,increase]"]),
        critical_at=tuple(params.get("critical") or params["effect_size_critical_[decrease,increase]"]),
        tolerance=params.get("tolerance", kayenta.TOLERANCE),
        confidence=params.get("confidence", kayenta.CONFIDENCE),
    )


def judged_metric(given: Case) -> kayenta.Metric:
    """The settings of one metric of a whole judgement."""
    effect, outliers = given.get("effectSize"), given.get("outliers", {})
    sizes: dict[str, Any] = {}
    if effect:
        neutral = 0.5 if effect.get("measure") == "cles" else 1.0
        sizes = {
            "measure": effect.get("measure", "meanRatio"),
            "allowed": (effect.get("allowedDecrease", neutral), effect.get("allowedIncrease", neutral)),
            "critical_at": (effect.get("criticalDecrease", neutral), effect.get("criticalIncrease", neutral)),
        }
    return kayenta.Metric(
        name=given["name"],
        groups=(given["group"],),
        direction=given["direction"],
        replace_nan=given["nanStrategy"] == "replace",
        critical=given["critical"],
        must_have_data=given["mustHaveData"],
        muted=given["muted"],
        remove_outliers=outliers.get("strategy") == "remove",
        outlier_factor=outliers.get("outlierFactor", 3.0),
        **sizes,
    )
