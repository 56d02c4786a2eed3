"""What changed between two images and what that is known to bring; and how the gate answers."""

from __future__ import annotations

import pytest

from service.model.gates.image import ImageGate, Risk
from service.model.gates.report import Finding
from service.preflight.image.difference import Difference, compare
from service.preflight.image.gate import judged
from service.preflight.image.identity import identify
from service.preflight.image.manifest import Image
from service.preflight.image.risks import KNOWN
from tests.unit.preflight.images import image, ngc_tensorflow, official, serving, triton_2502


def between(stable: Image, canary: Image) -> Difference:
    return compare(identify(stable), identify(canary))


def risks(stable: Image, canary: Image) -> list[Risk]:
    return [concern.risk for concern in between(stable, canary).concerns]


def numpy(version: str) -> Image:
    return image("r.example/a:1", history=(f"RUN pip install numpy=={version}",))


def environment(**variables: str) -> Image:
    return image("r.example/a:1", environment=variables)


def test_the_first_users_upgrade_is_told_with_its_known_risks() -> None:
    stable, canary = official("2.12.0", "2.12.0-gpu"), official("2.13.0", "2.13.0-gpu")
    report = judged(ImageGate(), identify(stable), identify(canary))
    assert report.finding is Finding.PASSED
    assert report.sentence == (
        "TensorFlow 2.12.0 -> 2.13.0, NumPy >=1.22,<1.24 -> >=1.22,<=1.24.3; known risks: tensorflow_ops, numpy_minor."
    )
    assert report.facts["TensorFlow"] == "2.12.0 -> 2.13.0"
    assert report.facts["CUDA"] == "11.8"
    assert report.facts["User"] == "root (none set)"
    assert risks(stable, canary) == [Risk.TENSORFLOW_OPS, Risk.NUMPY_MINOR]
    assert report.lines[0].startswith("TensorFlow 2.12.0 -> 2.13.0 (0 ops gone, 12 new, 28 changed): ")
    assert "Source: counted in the CPU packages" in report.lines[0]
    assert "NumPy may change" in report.lines[1]


def test_two_builds_of_the_same_version_bring_no_risk() -> None:
    assert risks(official("2.13.0", "2.13.0-gpu"), official("2.13.0", "2.13.0-gpu")) == []
    same = identify(official("2.13.0", "2.13.0"))
    assert judged(ImageGate(fail_on=(Risk.TENSORFLOW_OPS,)), same, same).sentence == "Both arms run the same image."


@pytest.mark.parametrize(
    ("stable", "canary", "expected"),
    [
        (
            official("2.15.0", "2.15.0"),
            official("2.16.1", "2.16.1"),
            [Risk.TENSORFLOW_OPS, Risk.KERAS_2_TO_3, Risk.ESTIMATOR_REMOVED],
        ),
        (official("2.13.0", "2.13.0"), official("2.12.0", "2.12.0"), [Risk.TENSORFLOW_OLDER, Risk.TENSORFLOW_OPS,
         Risk.NUMPY_MINOR]),
        (numpy("1.26.4"), numpy("2.0.2"), [Risk.NUMPY_2]),
        (numpy("1.23.5"), numpy("1.24.3"), [Risk.NUMPY_MINOR]),
        (numpy("1.24.3"), numpy("1.24.4"), []),
        (environment(CUDA_VERSION="11.8.0"), environment(CUDA_VERSION="12.3.2"), [Risk.CUDA_MAJOR]),
        (environment(CUDA_VERSION="12.3.2"), environment(CUDA_VERSION="12.6.0"), []),
        (environment(CUDA_VERSION="12.3.2"), environment(), [Risk.CUDA_GONE]),
        (environment(CUDNN_VERSION="8.9.6.50-1"), environment(CUDNN_VERSION="9.3.0.75-1"), [Risk.CUDNN_MAJOR]),
        (environment(PYTHON_VERSION="3.10.14"), environment(PYTHON_VERSION="3.11.9"), [Risk.PYTHON_MINOR]),
        (environment(PYTHON_VERSION="3.11.2"), environment(PYTHON_VERSION="3.11.9"), []),
        (environment(), environment(TF_ENABLE_ONEDNN_OPTS="0"), [Risk.ENVIRONMENT]),
        (environment(), environment(API_KEY="s3cr3t"), []),
        (image("a:1", user="1000"), image("a:2"), [Risk.BECAME_ROOT]),
        (image("a:1"), image("a:2"), []),
        (image("a:1"), image("a:2", user="1000"), []),
        (image("a:1", start=("/serve",)), image("a:2", start=("/serve", "--grpc")), [Risk.ENTRYPOINT]),
        (serving("2.12.0"), triton_2502(), [Risk.FRAMEWORK_CHANGED, Risk.ENTRYPOINT]),
        (
            image("r.example/a:1", labels={"org.opencontainers.image.ref.name": "ubuntu",
                                           "org.opencontainers.image.version": "20.04"}),
            image("r.example/a:1", labels={"org.opencontainers.image.ref.name": "ubuntu",
                                           "org.opencontainers.image.version": "22.04"}),
            [Risk.BASE_SYSTEM],
        ),
        (official("2.13.0", "2.13.0"), official("2.13.0", "2.14.0"), [Risk.TAG_DISAGREES]),
        (
            ngc_tensorflow("23.03-tf2-py3", "2.11.0", "12.1.0.023", "8.8.1.3"),
            ngc_tensorflow("24.08-tf2-py3", "2.16.1", "12.6.0.022", "9.3.0.75"),
            [Risk.TENSORFLOW_OPS, Risk.KERAS_2_TO_3, Risk.ESTIMATOR_REMOVED, Risk.CUDNN_MAJOR],
        ),
    ],
)  # fmt: skip
def test_a_change_brings_the_risks_that_are_known_of_it_and_no_others(
    stable: Image, canary: Image, expected: list[Risk]
) -> None:
    assert risks(stable, canary) == expected


def test_a_new_major_of_cuda_names_the_driver_that_it_needs() -> None:
    (concern,) = between(environment(CUDA_VERSION="12.8.1"), environment(CUDA_VERSION="13.0.2")).concerns
    assert concern.sentence.startswith("CUDA 12.8.1 -> 13.0.2, which needs a driver of at least 580: ")


def test_a_version_told_more_exactly_by_one_image_is_no_change() -> None:
    difference = between(environment(CUDA_VERSION="11.8.0"), environment(NV_CUDA_CUDART_VERSION="11.8.89-1"))
    assert [str(change) for change in difference.changes] == ["11.8.0"]
    assert not difference.changes[0].differs
    changed = between(numpy("1.26.0rc1"), numpy("1.26.0")).changes[0]
    assert changed.differs


@pytest.mark.parametrize(
    ("risk", "stable", "canary", "finding"),
    [
        (Risk.KERAS_2_TO_3, official("2.15.0", "2.15.0"), official("2.16.1", "2.16.1"), Finding.FAILED),
        (Risk.KERAS_2_TO_3, official("2.12.0", "2.12.0"), official("2.13.0", "2.13.0"), Finding.PASSED),
        # The packages' bounds rule NumPy 2 out for 2.12 and 2.13, and do not for 2.14.
        (Risk.NUMPY_2, official("2.12.0", "2.12.0"), official("2.13.0", "2.13.0"), Finding.PASSED),
        (Risk.NUMPY_2, official("2.12.0", "2.12.0"), official("2.14.0", "2.14.0"), Finding.COULD_NOT_LOOK),
        (Risk.NUMPY_MINOR, numpy("1.24.3"), numpy("1.24.4"), Finding.PASSED),
        (Risk.NUMPY_MINOR, numpy("1.24.3"), environment(), Finding.COULD_NOT_LOOK),
        (Risk.NUMPY_MINOR, environment(), environment(), Finding.PASSED),
        # Built from a file of requirements: neither image tells anything, and so rules nothing out.
        (Risk.TENSORFLOW_OLDER, image("r.example/a:1"), image("r.example/a:2"), Finding.COULD_NOT_LOOK),
        (Risk.NUMPY_2, image("r.example/a:1"), image("r.example/a:2"), Finding.COULD_NOT_LOOK),
        (Risk.NUMPY_2, image("r.example/a:1"), serving("2.13.0"), Finding.COULD_NOT_LOOK),
        (Risk.NUMPY_2, serving("2.12.0"), serving("2.13.0"), Finding.PASSED),
        (Risk.TENSORFLOW_OLDER, triton_2502(), triton_2502(), Finding.PASSED),
        (Risk.PYTHON_MINOR, environment(PYTHON_VERSION="3.11.1"), environment(), Finding.COULD_NOT_LOOK),
        (Risk.BECAME_ROOT, image("a:1", user="1000"), image("a:2"), Finding.FAILED),
        (Risk.CUDA_GONE, environment(CUDA_VERSION="12.3.2"), environment(), Finding.FAILED),
        (Risk.CUDA_MAJOR, environment(CUDA_VERSION="12.3.2"), environment(CUDA_VERSION="12.6.0"), Finding.PASSED),
        (Risk.CUDA_MAJOR, environment(CUDA_VERSION="12.3.2"), environment(), Finding.COULD_NOT_LOOK),
        (Risk.CUDA_MAJOR, environment(), environment(), Finding.PASSED),
    ],
)
def test_the_gate_fails_for_what_the_policy_lists_and_never_passes_what_it_cannot_rule_out(
    risk: Risk, stable: Image, canary: Image, finding: Finding
) -> None:
    report = judged(ImageGate(fail_on=(risk,)), identify(stable), identify(canary))
    assert report.finding is finding
    assert bool(report.to_do) is (finding is not Finding.PASSED)
    assert judged(ImageGate(), identify(stable), identify(canary)).finding is Finding.PASSED


def test_values_of_variables_that_may_be_secrets_are_in_no_report() -> None:
    stable = environment(API_KEY="s3cr3t-old", TF_XLA_FLAGS="--tf_xla_auto_jit=2")
    canary = environment(API_KEY="s3cr3t-new", DB_PASSWORD="s3cr3t", TF_XLA_FLAGS="\x1b[31m" + "x" * 500)
    text = judged(ImageGate(), identify(stable), identify(canary)).to_json() + repr(identify(canary))
    assert "s3cr3t" not in text
    assert "API_KEY" in text
    assert "\\u001b" not in text


def test_shared_layers_are_what_a_node_need_not_fetch_again() -> None:
    stable = image("a:1", layers=(("a", 2_000_000_000), ("b", 100_000_000)))
    canary = image("a:2", layers=(("a", 2_000_000_000), ("c", 300_000_000), ("c", 300_000_000)))
    report = judged(ImageGate(), identify(stable), identify(canary))
    assert report.facts["Size"] == "2.1 GB -> 2.3 GB"
    assert report.facts["Layers"] == "1 of 3 shared, 300.0 MB new"


def test_a_report_of_the_longest_image_fits_its_bounds() -> None:
    long = "x" * 100_000
    canary = image(
        "r.example/" + "/".join(["abcdefgh"] * 20) + ":" + "t" * 128,
        environment={f"V{n}" * 20: long for n in range(500)} | dict.fromkeys(("CUDA_VERSION", "TF_XLA_FLAGS"), long),
        user=long,
        start=(long,) * 50,
        labels={long: long},
    )
    report = judged(ImageGate(fail_on=tuple(Risk)), identify(image("a:1", user="1")), identify(canary))
    assert report.finding is Finding.PASSED or report.to_do


def test_every_risk_has_a_sentence_something_to_do_and_a_source() -> None:
    assert set(KNOWN) == set(Risk)
    assert all(known.brings and known.to_do and known.source for known in KNOWN.values())
