"""The rival that knows all but the pair and the onset: its evidence is fair, and it is no sooner than the floor."""

from __future__ import annotations

import numpy as np
import pytest

from tests.calibration.streams import Law
from tests.calibration.unknowing import ALIKE, BY_SHARE, LENGTH, evidence, main


@pytest.mark.parametrize("law", [Law(), Law(classes_n=2, outputs_n=2)], ids=["10 classes", "2 outputs of 2"])
@pytest.mark.parametrize("way", [ALIKE, BY_SHARE])
def test_the_likelihood_ratios_of_good_rollouts_average_to_the_weight_of_the_onsets_so_far(law: Law, way: str) -> None:
    after = np.exp(evidence(law, 4000, 0.3, way, seed=5)[:, 3])
    bet = 0.3 + 3 * 0.7 / (LENGTH - 1)
    assert after.mean() == pytest.approx(bet, abs=4 * after.std() / np.sqrt(len(after)))


def test_a_row_is_printed_for_each_prior_and_onset_beside_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rollouts", "400", "--first", "0.2", "--only", "2 classes"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == [BY_SHARE, BY_SHARE, ALIKE, ALIKE]
    late = rows[1]
    assert float(late[5].split(" = ")[0]) >= float(late[4]) > 10  # all the evidence, the onset half-way
