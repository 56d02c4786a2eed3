"""A model with several outputs: each is compared by itself, and together they have the predictions' part."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers import Categories, Counts, Margins, Monitor, MonitorConfig, Window, output_name, sentence

CONFIG = MonitorConfig(planned_windows=60, margins=Margins.none())
GOOD, MOVED = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.3, 0.4, 0.2, 0.1])


def windows(n: int, *shares: np.ndarray, rollouts: int = 2, seed: int = 1) -> list[Window]:
    """Windows with an output for each of the canary's class shares; stable's are good."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        n_c, n_s = np.full(rollouts, 60), np.full(rollouts, 540)
        first, *further = [Categories(rng.multinomial(n_c, p), rng.multinomial(n_s, GOOD)) for p in shares]
        errors = Counts(rng.binomial(n_c, 0.01), n_c, rng.binomial(n_s, 0.01), n_s)
        out.append(Window(errors=errors, predictions=first, outputs=tuple(further)))
    return out


def test_outputs_that_say_the_same_weigh_as_one() -> None:
    alone, thrice = Monitor(CONFIG, 2), Monitor(CONFIG, 2)
    for window in windows(20, MOVED):
        assert window.predictions is not None
        one = alone.observe(window)
        three = thrice.observe(Window(None, window.errors, window.predictions, outputs=(window.predictions,) * 2))
        assert np.allclose(one.log_evidence, three.log_evidence, rtol=1e-12)
        assert (one.rollback == three.rollback).all()
    for name in ("predictions", "predictions:2", "predictions:3"):
        assert (three.evidence[name].log_e == one.evidence["predictions"].log_e).all()


def test_a_move_in_one_output_is_found_and_that_output_is_named() -> None:
    monitor = Monitor(CONFIG, 2)
    for window in windows(40, GOOD, MOVED, GOOD):
        verdict = monitor.observe(window)
    assert verdict.rollback.all()
    blamed = {name: bool(of.blamed[0]) for name, of in verdict.evidence.items()}
    assert blamed == {"errors": False, "predictions": False, output_name(1): True, output_name(2): False}
    assert sentence(monitor, verdict).startswith("predictions of the canary lie")


def test_a_row_with_several_outputs_continues_exactly() -> None:
    through, broken = Monitor(CONFIG, 2), Monitor(CONFIG, 2)
    for window in windows(12, GOOD, MOVED):
        expected = through.observe(window)
        broken = Monitor.restore(CONFIG, broken.state())
        got = broken.observe(window)
        assert (expected.log_evidence == got.log_evidence).all()
    assert (through.state() == broken.state()).all()
    odd = through.state()
    odd[:, 2] = -3
    with pytest.raises(ValueError, match=r"not a row that this version|row of this layout has"):
        Monitor.restore(CONFIG, odd)


def test_a_required_output_must_be_shown_to_be_safe_by_itself() -> None:
    config = MonitorConfig(planned_windows=240, margins=Margins(predictions=0.02), required=frozenset({output_name(1)}))
    monitor = Monitor(config, 1)
    for window in windows(60, MOVED, GOOD, rollouts=1):
        verdict = monitor.observe(window)
    assert not verdict.evidence["predictions"].safe[0]
    assert verdict.evidence[output_name(1)].safe[0]


def test_outputs_keep_their_number_and_their_classes() -> None:
    monitor = Monitor(CONFIG, 2)
    (first, second) = windows(2, GOOD, GOOD)
    monitor.observe(first)
    with pytest.raises(ValueError, match="predictions has 4 classes, the first window had 4, 4"):
        monitor.observe(Window(errors=second.errors, predictions=second.predictions))
    with pytest.raises(ValueError, match="the first one's counts must stand in predictions"):
        Monitor(CONFIG, 2).observe(Window(errors=second.errors, outputs=second.outputs))
