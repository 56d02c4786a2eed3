"""Who an image is, from the words of real Dockerfiles; and what it does not tell stays unknown."""

from __future__ import annotations

import pytest

from service.preflight.image.identity import Identity, from_name, identify
from service.preflight.image.reference import ImageReference
from tests.unit.preflight.images import image, ngc_tensorflow, official, serving, triton_2502


def values(identity: Identity) -> dict[str, str]:
    return {name: seen.value for name, seen in identity.found.items()}


def by_tag(name: str) -> dict[str, str]:
    return values(from_name(ImageReference.parse(name)))


def test_tensorflows_own_gpu_image_tells_everything_but_numpy_which_its_package_bounds() -> None:
    found = identify(official("2.13.0", "2.13.0-gpu-jupyter"))
    assert values(found) == {
        "TensorFlow": "2.13.0",
        "Keras": "2",
        "CUDA": "11.8",
        "cuDNN": "8.6.0.163",
        "Python": "3.11",
        "NumPy": ">=1.22,<=1.24.3",
        "System": "ubuntu 22.04",
    }
    assert found.framework == "TensorFlow"
    assert found.found["TensorFlow"].where == "build step 8"
    assert not found.found["NumPy"].exact
    assert "which allows it" in found.found["NumPy"].where
    assert found.runs_as_root
    assert found.disagreements == ()


def test_nvidias_image_says_its_release_and_what_is_in_it() -> None:
    found = identify(ngc_tensorflow("24.08-tf2-py3", "2.16.1", "12.6.0.022", "9.3.0.75"))
    assert values(found) == {
        "TensorFlow": "2.16.1",
        "NGC release": "24.08",
        "Keras": "3",
        "CUDA": "12.6.0",
        "cuDNN": "9.3.0.75",
        "Python": "3.10",
        "System": "ubuntu 22.04",
    }
    assert found.found["TensorFlow"].where == "environment TENSORFLOW_VERSION"


def test_triton_and_serving_are_servers_with_no_numpy_of_their_own() -> None:
    triton = identify(triton_2502())
    assert triton.framework == "Triton"
    assert values(triton) == {
        "Triton": "2.55.0",
        "NGC release": "25.02",
        "CUDA": "12.8.0",
        "cuDNN": "9.7.1.26",
        "Python": "3.12",
    }
    served = identify(serving("2.13.0-gpu", gpu=True))
    assert served.framework == "TensorFlow Serving"
    assert values(served) == {
        "TensorFlow": "2.13",
        "TensorFlow Serving": "2.13.0",
        "CUDA": "11.2",
        "cuDNN": "8.1.0.77",
    }


def test_a_later_build_step_counts_more_than_what_the_base_image_says() -> None:
    found = identify(
        image(
            "registry.example:5000/ml/ranker:7",
            environment={"TENSORFLOW_VERSION": "2.16.1+nv24.08", "PYTHON_VERSION": "3.11.7"},
            history=(
                "RUN /bin/sh -c pip install 'numpy==1.26.4' tensorflow[and-cuda]==2.17.0 tensorflow-estimator==2.15.0",
                "RUN /bin/sh -c pip install --upgrade numpy==2.0.2 tensorflow_serving_api==2.16.1 pandas",
                "COPY /model /model",
            ),
        )
    )
    assert values(found)["TensorFlow"] == "2.17.0"
    assert values(found)["CUDA"] == "12.3"  # [and-cuda] brings what TensorFlow was built with
    assert values(found)["NumPy"] == "2.0.2"
    assert found.found["NumPy"].where == "build step 2"
    assert values(found)["Python"] == "3.11.7"


def test_a_base_image_named_in_a_label_is_read_like_a_tag() -> None:
    found = identify(
        image(
            "registry.example/ml/ranker:2.4.0",
            labels={"org.opencontainers.image.base.name": "docker.io/pytorch/pytorch:2.3.0-cuda12.1-cudnn8-runtime"},
        )
    )
    assert values(found) == {"PyTorch": "2.3.0", "CUDA": "12.1", "cuDNN": "8"}
    assert found.disagreements == ()


def test_a_tag_that_promises_another_version_is_told() -> None:
    found = identify(official("2.12.0", "2.13.0-gpu"))
    assert values(found)["TensorFlow"] == "2.12.0"
    assert found.disagreements == ("the tag says TensorFlow 2.13.0, but build step 8 says 2.12.0",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensorflow/tensorflow:2.12.0", {"TensorFlow": "2.12.0", "Keras": "2", "NumPy": ">=1.22,<1.24"}),
        (
            "tensorflow/tensorflow:2.13.0-gpu-jupyter",
            {"TensorFlow": "2.13.0", "Keras": "2", "CUDA": "11.8", "cuDNN": "8.6", "NumPy": ">=1.22,<=1.24.3"},
        ),
        (
            "registry.example:5000/mirror/notebooks:2.13.0-gpu-jupyter",
            {"TensorFlow": "2.13.0", "Keras": "2", "CUDA": "11.8", "cuDNN": "8.6", "NumPy": ">=1.22,<=1.24.3"},
        ),
        ("r.example/base/tf:2.14.0rc1", {"TensorFlow": "2.14.0rc1", "Keras": "2", "NumPy": ">=1.23.5"}),
        # Its environment could still ask for Keras 2, so the tag alone does not say which it is.
        ("tensorflow/tensorflow:2.16.1", {"TensorFlow": "2.16.1", "NumPy": ">=1.23.5,<2.0.0"}),
        ("nvcr.io/nvidia/tensorflow:24.08-tf2-py3", {"NGC release": "24.08"}),
        (
            "nvcr.io/nvidia/tensorflow:24.02-tf2-py3",
            {"NGC release": "24.02", "TensorFlow": "2.15.0", "Keras": "2"},
        ),
        ("r.example/mirror/ngc:24.08-tf2-py3", {"NGC release": "24.08"}),
        ("nvcr.io/nvidia/tritonserver:24.08-py3", {"NGC release": "24.08", "CUDA": "12.6"}),
        ("pytorch/pytorch:2.3.0-cuda12.1-cudnn8-runtime", {"PyTorch": "2.3.0", "CUDA": "12.1", "cuDNN": "8"}),
        ("r.example/ml/ranker:1.4-tf2.13.0-py311-cu121", {"TensorFlow": "2.13.0", "Python": "3.11", "CUDA": "12.1",
         "Keras": "2", "NumPy": ">=1.22,<=1.24.3"}),
        ("r.example/ml/ranker:2.13.0", {}),
        ("r.example/ml/ranker:2.13.0-gpu", {}),
        ("r.example/ml/ranker:24.08", {}),
        ("r.example/ml/ranker:24.08-1", {}),
        ("tensorflow/tensorflow:latest-gpu", {}),
        ("tensorflow/tensorflow:nightly", {}),
        ("tensorflow/tensorflow:2", {}),
        ("tensorflow/tensorflow@sha256:" + "0" * 64, {}),
    ],
)  # fmt: skip
def test_a_tag_tells_what_its_form_allows_and_no_more(name: str, expected: dict[str, str]) -> None:
    assert by_tag(name) == expected


def test_an_image_that_says_nothing_is_not_known_and_not_taken_for_anything() -> None:
    found = identify(image("r.example/ml/ranker:2.13.0", user="1000"))
    assert found.found == {}
    assert found.framework == ""
    assert found.value("TensorFlow") == "not known"
    assert not found.runs_as_root


def test_the_version_of_the_system_in_an_inherited_label_is_not_taken_for_the_images() -> None:
    found = identify(
        image(
            "tensorflow/tensorflow:latest",
            labels={"org.opencontainers.image.ref.name": "ubuntu", "org.opencontainers.image.version": "22.04"},
        )
    )
    assert values(found) == {"System": "ubuntu 22.04"}


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "root:root", "0:1000"])
def test_root_has_many_names(user: str) -> None:
    assert identify(image("a:1", user=user)).runs_as_root


def test_legacy_keras_stays_keras_2_on_a_newer_tensorflow() -> None:
    found = identify(
        image("tensorflow/tensorflow:2.16.1", environment={"TF_USE_LEGACY_KERAS": "1", "TENSORFLOW_VERSION": "2.16.1"})
    )
    assert values(found)["Keras"] == "2"


@pytest.mark.parametrize(
    "value", ["", "latest", "v", "\x1b[2J", "..", "٢.١", "=" * 10_000, "9" * 10_000 + ".1", "2" + ".1" * 10_000]
)
def test_a_variable_that_holds_no_version_tells_nothing_or_a_short_one(value: str) -> None:
    found = values(identify(image("r.example/x:1", environment={"TENSORFLOW_VERSION": value, "CUDA_VERSION": value})))
    assert all(len(v) < 40 and v.isprintable() and v.isascii() for v in found.values())


def test_a_history_as_long_as_is_read_at_all_is_looked_through_in_bounded_work() -> None:
    worst = "pip install tensorflow-cpu[" + "a," * 2000 + " python3.1 A" + "A" * 3000 + " numpy" * 200
    found = identify(image("r.example/x:1", history=(worst,) * 600 + ("RUN pip install numpy==1.26.4",)))
    assert values(found) == {"NumPy": "1.26.4", "Python": "3.1"}
