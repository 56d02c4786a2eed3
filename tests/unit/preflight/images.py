"""Images as real registries tell them: the words of the projects' own Dockerfiles, cut to what counts."""

from __future__ import annotations

from service.preflight.image.manifest import Descriptor, Image, digest_of
from service.preflight.image.reference import ImageReference


def image(
    name: str,
    *,
    environment: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    history: tuple[str, ...] = (),
    user: str = "",
    start: tuple[str, ...] = (),
    layers: tuple[tuple[str, int], ...] = (("a", 30_000_000),),
    platform: str = "linux/amd64",
) -> Image:
    reference = ImageReference.parse(name)
    return Image(
        reference=reference,
        digest=digest_of(name.encode()),
        index_digest=None,
        config_digest=digest_of(b"config"),
        platform=platform,
        created="2026-11-01T00:00:00Z",
        user=user,
        environment=environment or {},
        labels=labels or {},
        start=start,
        history=history,
        layers=tuple(Descriptor(digest="sha256:" + letter * 64, size=size) for letter, size in layers),
    )


def official(version: str, tag: str, **changes: object) -> Image:
    """TensorFlow's own runtime image (tensorflow_runtime_dockerfiles of the project's build repository)."""
    gpu = "gpu" in tag
    steps = (
        "/bin/sh -c #(nop) ADD file:63d5ab3ef0aab308c in / ",
        "LABEL org.opencontainers.image.ref.name=ubuntu",
        "ENV DEBIAN_FRONTEND=noninteractive",
        *(
            (
                "RUN /bin/sh -c apt-get install -y cuda-command-line-tools-11-8 cuda-cudart-dev-11-8 libcublas-11-8 "
                "libcudnn8=8.6.0.163-1+cuda11.8 libnvinfer8=8.4.3-1+cuda11.6 # buildkit",
            )
            if gpu
            else ()
        ),
        "ARG PYTHON_VERSION=python3.11",
        f"ARG TENSORFLOW_PACKAGE=tensorflow=={version}",
        f"RUN |2 PYTHON_VERSION=python3.11 TENSORFLOW_PACKAGE=tensorflow=={version} /bin/sh -c /setup.python.sh "
        "$PYTHON_VERSION /requirements.txt # buildkit",
        f"RUN |2 PYTHON_VERSION=python3.11 TENSORFLOW_PACKAGE=tensorflow=={version} /bin/sh -c pip install "
        "--no-cache-dir ${TENSORFLOW_PACKAGE} # buildkit",
    )
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}
    if gpu:
        environment |= {
            "NVARCH": "x86_64",
            "NV_CUDA_CUDART_VERSION": "11.8.89-1",
            "CUDA_VERSION": "11.8.0",
            "NVIDIA_REQUIRE_CUDA": "cuda>=11.8 brand=tesla,driver>=450,driver<451",
            "NVIDIA_VISIBLE_DEVICES": "all",
        }
    labels = {
        "maintainer": "NVIDIA CORPORATION <cudatools@nvidia.com>",
        "org.opencontainers.image.ref.name": "ubuntu",
        "org.opencontainers.image.version": "22.04",
    }
    given = {"environment": environment, "labels": labels, "history": steps, **changes}
    return image(f"tensorflow/tensorflow:{tag}", **given)  # type: ignore[arg-type]


def ngc_tensorflow(tag: str, tensorflow: str, cuda: str, cudnn: str) -> Image:
    """NVIDIA's monthly TensorFlow image."""
    return image(
        f"nvcr.io/nvidia/tensorflow:{tag}",
        environment={
            "CUDA_VERSION": cuda,
            "CUDA_DRIVER_VERSION": "560.35.03",
            "CUDNN_VERSION": cudnn,
            "NVIDIA_REQUIRE_CUDA": "cuda>=9.0",
            "NVIDIA_PRODUCT_NAME": "TensorFlow",
            "NVIDIA_TENSORFLOW_VERSION": f"{tag.removesuffix('-py3')}",
            "TENSORFLOW_VERSION": f"{tensorflow}+nv{tag[:5]}",
            "LD_LIBRARY_PATH": "/usr/local/lib/python3.10/dist-packages/torch/lib:/usr/local/cuda/lib64",
        },
        labels={
            "com.nvidia.build.id": "107010310",
            "org.opencontainers.image.ref.name": "ubuntu",
            "org.opencontainers.image.version": "22.04",
        },
    )


def triton_2502() -> Image:
    """Triton 25.02, by the environment that one printed."""
    return image(
        "nvcr.io/nvidia/tritonserver:25.02-py3",
        environment={
            "NVIDIA_VISIBLE_DEVICES": "all",
            "NVIDIA_REQUIRE_CUDA": "cuda>=9.0",
            "NVIDIA_PRODUCT_NAME": "Triton Server",
            "CUDA_VERSION": "12.8.0.038",
            "CUDNN_FRONTEND_VERSION": "1.10.0",
            "CUDNN_VERSION": "9.7.1.26",
            "NVIDIA_TRITON_SERVER_VERSION": "25.02",
            "TRITON_SERVER_VERSION": "2.55.0",
            "LD_LIBRARY_PATH": "/usr/local/lib/python3.12/dist-packages/torch/lib:/usr/local/nvidia/lib64",
        },
    )


def serving(tag: str, gpu: bool = False) -> Image:
    """TensorFlow Serving, by its Dockerfiles."""
    return image(
        f"tensorflow/serving:{tag}",
        environment={"MODEL_BASE_PATH": "/models", "MODEL_NAME": "model"}
        | ({"CUDNN_VERSION": "8.1.0.77", "CUDA": "11.2", "TF_TENSORRT_VERSION": "7.2.2"} if gpu else {}),
        labels={
            "tensorflow_serving_github_branchtag": tag.removesuffix("-gpu"),
            "tensorflow_serving_github_commit": "ab",
        },
        start=("/usr/bin/tf_serving_entrypoint.sh",),
    )
