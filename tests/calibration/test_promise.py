"""The promise, measured in short: false rollbacks over whole rollouts, how soon faults are found, wrong promotions.

Seeded, part of `make test`; `make calibrate` measures every cell with thousands of rollouts.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from analyzers import Margins, Monitor, MonitorConfig
from tests.calibration import cells
from tests.calibration.__main__ import main
from tests.calibration.measuring import Cell, measure, share
from tests.calibration.resource_cells import FAULTS_RESOURCES, NULLS_RESOURCES, ResourceCell, measure_resources
from tests.calibration.streams import Law, windows


def first_crossing(law: Law, *, rollouts: int, length: int, seed: int, margins: Margins) -> np.ndarray:
    """(R,) window of the rollback, inf where there is none."""
    return measure(Cell("", law, length, margins=margins), rollouts, seed).rollback


def at_most(crossed: np.ndarray, rate: float) -> bool:
    """Whether the count does not show a rate above ``rate``; prints it with its interval."""
    count = int(np.isfinite(crossed).sum())
    print(share(count, len(crossed)))
    return binomtest(count, len(crossed), rate, alternative="greater").pvalue > 0.01


def named(group: list[Cell], name: str, length: int = 60) -> Cell:
    """The cell of this name and length."""
    return next(cell for cell in group if cell.name == name and cell.length == length)


@pytest.mark.parametrize("name", cells.BY_ARM)
def test_a_harmless_release_is_rolled_back_no_more_often_than_promised(name: str) -> None:
    # 1,000 rollouts cannot tell 1.0 % from 1.2 %: this fails when the rate is shown to be above 1 %.
    outcome = measure(named(cells.NULLS_BY_ARM, name), 1000, seed=20261124)
    assert at_most(outcome.rollback, 0.01)
    assert at_most(outcome.pause, 0.10)


@pytest.mark.parametrize("name", cells.BURSTS)
def test_bursts_of_one_arm_that_past_rollouts_showed_roll_nothing_back(name: str) -> None:
    outcome = measure(named(cells.NULLS_BY_ARM, f"{name}, 10 past"), 1000, seed=20261124)
    assert at_most(outcome.rollback, 0.01)


@pytest.mark.parametrize("name", ["pods 3 %, noise 5 %", "undeclared warm-up"])
def test_pods_that_differ_wander_and_warm_up_keep_the_promise(name: str) -> None:
    assert at_most(measure(named(cells.NULLS_BY_POD, name), 256, seed=4).rollback, 0.01)


@pytest.mark.parametrize(
    ("law", "within"),
    [
        (Law(slower=1.2), 6),
        (Law(slower=1.1), 16),
        (Law(errors=0.005, canary_errors=0.02), 15),
        (Law(class_move=0.10), 8),
        (Law(class_move=0.05, predictions_alone=True), 16),
        (Law(class_move=0.05, predictions_alone=True, classes_n=1000), 7),
        (Law(canary=600, stable=5400, tail_share=0.03), 10),
    ],
    ids=[
        "x1.2",
        "x1.1",
        "errors .5 to 2 %",
        "10-point class move",
        "5 points of 10 classes",
        "5 points of 1,000 classes",
        "tail share 1 to 3 %",
    ],
)
def test_a_fault_is_found_soon(law: Law, within: int) -> None:
    found = first_crossing(law, rollouts=200, length=60, seed=5, margins=Margins.none())
    assert np.median(found) <= within


SHORT_NULLS = [cell for cell in NULLS_RESOURCES if cell.length == 60 and "2 of 18" in cell.name]


@pytest.mark.parametrize("cell", SHORT_NULLS, ids=lambda cell: cell.name)
def test_pods_that_use_as_much_as_others_are_called_harmful_no_more_often_than_promised(cell: ResourceCell) -> None:
    assert at_most(measure_resources(cell, 500, seed=20261126).rollback, 0.01)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("2 of 18, leak 1 %/h from the start, at 50 % of the limit", 1500),
        ("1 of 10, leak 1 %/h from the start, at 50 % of the limit", 1500),
        ("2 of 18, GPU memory +20 % at 60", 3),
        ("1 of 10, GPU memory +20 % at 60", 3),
        ("2 of 18, load x2 at 60, pods 5 %, noise 5 %", 10),
    ],
)
def test_a_fault_of_pods_is_found_in_time(name: str, within: int) -> None:
    cell = next(cell for cell in FAULTS_RESOURCES if cell.name == name)
    found = measure_resources(cell, 24, seed=6).rollback
    assert np.median(found) - cell.law.onset <= within
    assert (found > cell.law.onset).all()


@pytest.mark.parametrize("cell", [cells.AT_MARGIN[1], cells.AT_MARGIN[4]], ids=lambda cell: cell.name)
def test_a_release_at_its_margin_is_hardly_ever_called_safe(cell: Cell) -> None:
    assert at_most(measure(cell, 500, seed=9).safe, 0.01)


def test_a_good_release_is_soon_called_safe() -> None:
    assert np.median(measure(cells.GOOD[1], 200, seed=9).safe) <= 15


def test_the_sequence_of_the_error_ratio_covers_the_truth_at_every_window() -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60), 500)
    odds = (0.02 / 0.98) / (0.01 / 0.99)
    missed = np.zeros(500, bool)
    for window in windows(Law(errors=0.01, canary_errors=0.02), 500, 60, seed=31):
        errors = monitor.observe(window).evidence["errors"]
        missed |= (errors.effect_low > odds) | (errors.effect_high < odds)
    assert binomtest(int(missed.sum()), 500, 0.05, alternative="greater").pvalue > 0.01


def test_the_sequences_of_the_quantile_ratios_cover_the_truth_at_every_window() -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60), 300)
    missed = np.zeros((2, 300), bool)
    for window in windows(Law(slower=1.3, ramp=True), 300, 60, seed=32):
        monitor.observe(window)
        for place, q in enumerate((0.5, 0.99)):
            _, low, high = monitor.quantiles(q)
            missed[place] |= (low > 1.3) | (high < 1.3)
    for of_one in missed:
        assert binomtest(int(of_one.sum()), 300, 0.05, alternative="greater").pvalue > 0.01


def test_the_full_measurement_prints_a_row_a_cell_and_writes_its_table(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"  # type: ignore[operator]
    assert main(["good", "--part", "0.1", "--jobs", "1", "--out", str(out)]) == 0
    assert "[good 5/5" in capsys.readouterr().out
    assert out.read_text().count("\n| ") == len(cells.GOOD) + 1
    with pytest.raises(SystemExit):
        main(["nulls"])
