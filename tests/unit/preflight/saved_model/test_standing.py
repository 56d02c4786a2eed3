"""How a Job stands, by what the API says of its pods."""

from __future__ import annotations

from typing import Any

import pytest

from service.preflight.saved_model.cluster import standing_of
from service.preflight.saved_model.job import MESSAGE_BYTES, Ended, Standing


def pod(state: dict[str, Any] | None = None, condition: dict[str, Any] | None = None) -> Any:
    return {
        "status": {
            "containerStatuses": [{"state": state}] if state else None,
            "conditions": [condition] if condition else None,
        }
    }


@pytest.mark.parametrize(
    ("pods", "standing"),
    [
        ([], Standing(None, False, "")),
        ([{}], Standing(None, False, "")),
        ([pod({"waiting": {"reason": "ImagePullBackOff"}})], Standing(None, False, "ImagePullBackOff")),
        ([pod(None, {"status": "False", "reason": "Unschedulable"})], Standing(None, False, "Unschedulable")),
        ([pod(None, {"status": "True", "reason": "Fine"})], Standing(None, False, "")),
        ([pod({"running": {}})], Standing(None, False, "")),
        (
            [pod({"terminated": {"exitCode": 0, "reason": "Completed", "message": "{}"}})],
            Standing(Ended(0, "Completed", "{}"), False, ""),
        ),
        (
            [pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})],
            Standing(Ended(137, "OOMKilled", ""), False, ""),
        ),
    ],
)
def test_how_a_job_stands_is_read_from_its_pods(pods: list[Any], standing: Standing):
    assert standing_of(pods, failed=False) == standing


def test_a_job_that_was_given_up_is_told_with_what_it_waited_for():
    assert standing_of([pod({"waiting": {"reason": "ErrImagePull"}})], failed=True) == Standing(
        None, True, "ErrImagePull"
    )


def test_what_a_container_says_is_cut_and_its_reason_made_readable():
    long = standing_of([pod({"terminated": {"exitCode": 1, "reason": "a\nb", "message": "x" * 9000}})], failed=False)
    assert long.ended is not None
    assert len(long.ended.message) == MESSAGE_BYTES
    assert "\n" not in long.ended.reason
