"""One sentence of evidence: the metric that says most, its size, the odds, and the rule's error rate."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers import Histogram, Margins, Monitor, MonitorConfig, Window, placebo_sentence, sentence, warnings
from analyzers.pods import ODD
from tests.calibration.pod_streams import PodLaw, pod_windows
from tests.calibration.streams import Law, windows

CONFIG = MonitorConfig(planned_windows=60, margins=Margins.none())


def after(law: Law, n: int = 40) -> str:
    monitor = Monitor(CONFIG, 1)
    for window in windows(law, 1, n, seed=12):
        verdict = monitor.observe(window)
    return sentence(monitor, verdict)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (Law(slower=1.3), "times"),
        (Law(tail_share=0.05, canary=600, stable=5400), "p99 of the canary is"),
        (Law(canary_errors=0.02), "canary requests failed and"),
        (Law(class_move=0.15), "nats from stable's"),
    ],
    ids=["slower", "tail", "errors", "classes"],
)
def test_the_sentence_names_what_is_wrong_and_the_rule(law: Law, words: str) -> None:
    text = after(law)
    assert words in text
    assert "to 1" in text
    assert text.endswith("1 in 100 good releases would be rolled back by this rule over the whole rollout.")


def test_before_anything_is_counted_the_sentence_says_so() -> None:
    monitor = Monitor(CONFIG, 1)
    verdict = monitor.observe(Window(latency=Histogram([0.1], [[0, 0]], [[5, 5]])))
    assert sentence(monitor, verdict).startswith("Nothing could be compared yet")


def test_one_bucket_for_nearly_everything_is_warned_of() -> None:
    monitor = Monitor(CONFIG, 2)
    verdict = monitor.observe(Window(latency=Histogram([0.1], [[59, 1], [30, 30]], [[530, 10], [270, 270]])))
    assert "native histograms" in warnings(monitor, verdict, 0)[0]
    assert not warnings(monitor, verdict, 1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_odd_stable_pod_is_named_and_pods_that_differ_as_usual_are_not(seed: int) -> None:
    odd, usual = Monitor(CONFIG, 8), Monitor(CONFIG, 40)
    for window in pod_windows(PodLaw(pod_spread=0.03, odd_pod=0.5), 8, 30, seed=seed):
        verdict = odd.observe(window)
    for window in pod_windows(PodLaw(pod_spread=0.03), 40, 30, seed=seed):
        usual.observe(window)
    assert (np.abs(odd.odd_pods()[:, -1]) > ODD).all()
    assert (np.abs(odd.odd_pods()[:, :-1]) <= ODD).all()
    assert (np.abs(usual.odd_pods()) > ODD).any(1).mean() <= 0.05
    assert "Stable pod 18 is much slower" in warnings(odd, verdict, 0)[-1]


def test_the_canary_is_placed_among_stable_pods_in_its_place() -> None:
    monitor = Monitor(CONFIG, 1)
    for window in pod_windows(PodLaw(slower=1.3), 1, 20, seed=2):
        verdict = monitor.observe(window)
    assert placebo_sentence(monitor) == "Slower than 18 of 18 placebo canaries (stable pods in its place)."
    assert np.isfinite(verdict.log_evidence[0])
    by_arm = Monitor(CONFIG, 1)
    by_arm.observe(next(windows(Law(), 1, 1, seed=1)))
    assert placebo_sentence(by_arm) is None
