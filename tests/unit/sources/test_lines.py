"""Lines are told apart by configured patterns, in bounded time, and what is shown of them is plain text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from service.model.lines import LinePattern
from service.model.observation import Availability, LineCounts
from service.model.preset import MetricsPreset
from service.sources.lines import MOST_NAMES, OTHERS, Kinds, counted, kinds, shown
from tests.shipped import patterns

TENSORFLOW = patterns("tensorflow", "tensorflow-failures")


def of(*patterns: tuple[str, list[str]]) -> Kinds:
    return kinds(tuple(LinePattern.model_validate({"name": name, "any_of": any_of}) for name, any_of in patterns))


def logs(**changes: Any) -> MetricsPreset:
    given = {"kind": "logs", "patterns": [{"name": "p", "any_of": ["x"]}]}
    return MetricsPreset.model_validate({"name": "p", "metrics": {"lines": given | changes}})


# As TensorFlow 2.21 and TensorFlow Serving print them, with a log's prefix where they have one.
PRINTED = [
    (
        "W op_kernel.cc:1842] OP_REQUIRES failed: NOT_FOUND: No registered 'MyOp' OpKernel for "
        "'GPU' devices compatible with node {{node MyOp}}",
        "missing-opkernel MyOp",
    ),
    (
        "No registered 'Ns>Op' OpKernel for 'GPU' devices compatible with node {{node n}}\\n\\t (OpKernel was "
        "found, but attributes didn't match) .  Registered:  device='CPU'",
        "missing-opkernel Ns>Op",
    ),
    (
        "INVALID_ARGUMENT: No OpKernel was registered to support Op 'FancyOp' used by {{node FancyOp}} with these "
        "attrs: [T=DT_FLOAT, name='x']",
        "missing-opkernel FancyOp",
    ),
    (
        "tensorflow.python.framework.errors_impl.NotFoundError: Could not find device for node: {{node my/node}} = "
        "CudnnRNN[T=DT_FLOAT, dropout=0]",
        "missing-opkernel CudnnRNN",
    ),
    (
        "2026-11-26 04:00:00.000001: E x.cc:1] Op type not registered 'RegexFullMatch2' in binary "
        "running on pod-1. Make sure the Op and Kernel are registered in the binary running in this process.",
        "missing-opkernel RegexFullMatch2",
    ),
    (
        "E retrier.cc:37] Loading servable: {name: ranker version: 3} failed: Not found: Op type "
        "not registered 'FancyOp' in binary running on pod-1.",
        "missing-opkernel FancyOp",
    ),
    (
        "Loading servable: {name: ranker version: 3} failed: Data loss: not an sstable (bad magic number)",
        "load-failure ranker",
    ),
    ("Failed to start server. Error: Unknown: 1 servable(s) did not become available", "load-failure"),
    (
        "I tensorflow/cc/saved_model/loader.cc:334] SavedModel load for tags { serve }; Status: "
        "fail: Not found: /models/x. Took 12 microseconds.",
        "load-failure",
    ),
    (
        "W tsl/framework/bfc_allocator.cc:482] Allocator (GPU_0_bfc) ran out of memory trying to allocate 2.00GiB",
        "cuda-out-of-memory",
    ),
    (
        "OOM when allocating tensor with shape[1024,1024] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
        "cuda-out-of-memory GPU_0_bfc",
    ),
    (
        "failed to allocate 7.9G (8500000000 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "cuda-out-of-memory",
    ),
]


@pytest.mark.parametrize(("line", "kind"), PRINTED)
def test_what_tensorflow_prints_is_of_the_kind_and_about_the_op(line: str, kind: str) -> None:
    assert kinds(TENSORFLOW.patterns).of_line(line) == kind


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Registered devices: [CPU]",
        "  <no registered kernels>",
        "I loader.cc:334] SavedModel load for tags { serve }; Status: success: OK. Took 12 microseconds.",
        "Loading servable version {name: ranker version: 3}",
        "Successfully loaded servable version {name: ranker version: 3}",
        "device='CPU'; T in [DT_FLOAT] registered",
        "No registered users",
    ],
)
def test_what_a_healthy_server_prints_is_of_no_kind(line: str) -> None:
    assert kinds(TENSORFLOW.patterns).of_line(line) is None


def test_a_line_is_of_the_first_kind_that_fits_wherever_it_fits() -> None:
    told = of(("second", ["b(?P<subject>[0-9])"]), ("first", ["a(?P<subject>[0-9])"]))
    assert told.of_line("a1 b2") == "second 2"
    assert told.of_line("a1") == "first 1"


@pytest.mark.parametrize(
    ("regex", "said"),
    [
        ("(a)", "only group"),
        ("(?P<op>a)", "only group"),
        ("(?P<subject>a)(?P<subject>b)", "only group"),
        (r"(a)\1", "RE2"),
        ("(?=a)b", "RE2"),
        ("a(", "RE2"),
        ("((a{100}){100}){100}", "RE2"),
        ("[(?P<subject>]a(?:b)", "only as a group"),
        ("a*", "every line"),
    ],
)
def test_expressions_that_a_log_store_could_not_run_stop_the_start_up(regex: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        logs(patterns=[{"name": "p", "any_of": [regex]}])


def test_a_metric_of_logs_needs_some_pattern() -> None:
    with pytest.raises(ValidationError, match="needs patterns, or sets"):
        logs(patterns=[])


def test_a_hostile_line_takes_no_more_time_than_a_plain_one() -> None:
    # A backtracking engine would not end: the nested repeat is what it cannot do.
    assert of(("p", ["(?:x+x+)+y"])).of_line("x" * 1_000_000) is None


def test_what_is_shown_holds_no_controls_and_is_cut() -> None:
    assert shown("a\x1b[31m\nb\u202e\u2028c\td\x00", 40) == "a [31m b c d"
    assert shown("x" * 1000, 10) == "xxxxxxx..."


def test_only_kinds_that_stable_never_had_are_the_canarys_own() -> None:
    canary = Counter({"op A": 2, "op B": 1, "op C": 5})
    reading = counted(
        "logs", canary, Counter({"op A": 1, "op D": 9}), Counter({"op C": 1}), before="for 1 h", sample="line\x07 1"
    )
    assert reading.counts == LineCounts(("op C", "op A", "op B"), (5, 2, 1), (0, 1, 0), (1, 0, 0))
    assert reading.counts.only_on_canary() == (0, 0, 1)
    assert reading.detail.startswith(
        "op B: 1 of the canary, none of stable for 1 h; op C: 5 of the canary, 1 of stable"
    )
    assert reading.detail.endswith('"line 1"')


def test_more_kinds_than_are_told_apart_are_counted_together_and_none_is_lost() -> None:
    canary = Counter({f"op {i:03}": 1 for i in range(3 * MOST_NAMES)})
    reading = counted("logs", canary, Counter({"op 000": 7, "op 149": 4, "op x": 1}), Counter(), before="")
    assert isinstance(reading.counts, LineCounts)
    assert sum(reading.counts.canary) == 3 * MOST_NAMES
    assert reading.counts.names[-1] == OTHERS
    assert sum(reading.counts.stable) == 11
    assert reading.availability is Availability.ENOUGH
    assert len(reading.detail) <= 300
