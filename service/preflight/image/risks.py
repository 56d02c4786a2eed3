"""What a change of image is known to bring: one entry a risk, each with what to do and where that is said. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from service.model.gates.image import Risk
from service.preflight.image import tables
from service.preflight.image.evidence import CUDA, CUDNN, KERAS, NUMPY, PYTHON, SYSTEM, TENSORFLOW


@dataclass(frozen=True, slots=True)
class Known:
    """One entry."""

    brings: str
    to_do: str
    source: str
    needs: str = ""
    """The name that both images must tell for the risk to be ruled out; empty: what is needed is always there."""


KNOWN: dict[Risk, Known] = {
    Risk.FRAMEWORK_CHANGED: Known(
        "another framework serves the model: metrics, formats and defaults are all others",
        "see whether this is the image that was meant, and whether the metrics preset fits it",
        "the images",
    ),
    Risk.TENSORFLOW_OLDER: Known(
        "an older TensorFlow does not load a model that uses ops or attributes that came later",
        "run the model gate: serinus preflight model",
        "loading models of newer versions in 2.12.0 and 2.13.0: Op type not registered",
        TENSORFLOW,
    ),
    Risk.TENSORFLOW_OPS: Known(
        "ops, their attributes and their kernels differ between minor versions of TensorFlow",
        "run the model gate, which holds the model's ops against those of the new version",
        tables.TENSORFLOW_OPS_SOURCE,
        TENSORFLOW,
    ),
    Risk.KERAS_2_TO_3: Known(
        "tf.keras becomes Keras 3: code and .keras or .h5 files of Keras 2 may not load, SavedModels do",
        "serve SavedModels, or set TF_USE_LEGACY_KERAS=1 and install tf-keras",
        tables.KERAS_3_SOURCE,
        KERAS,
    ),
    Risk.ESTIMATOR_REMOVED: Known(
        "tf.estimator is gone; code that imports it fails at start",
        "serve an exported SavedModel, or stay below TensorFlow 2.16",
        tables.KERAS_3_SOURCE,
        TENSORFLOW,
    ),
    Risk.CUDA_MAJOR: Known(
        "another major version of CUDA needs a newer driver on the nodes",
        "look at the driver of the nodes (nvidia-smi) before traffic goes there",
        tables.CUDA_DRIVER_SOURCE,
        CUDA,
    ),
    Risk.CUDA_GONE: Known(
        "stable has CUDA and the candidate shows no trace of it, so that it may compute on the CPU",
        "see whether the -gpu variant of the image was meant",
        "the images",
    ),
    Risk.CUDNN_MAJOR: Known(
        "cuDNN is built anew in other libraries: code linked against the old ones does not load, and convolutions may "
        "choose other algorithms, which sum in another order",
        "replay golden requests; look for libcudnn in the start-up log",
        "docs.nvidia.com/deeplearning/cudnn, overview of version 9",
        CUDNN,
    ),
    Risk.NUMPY_2: Known(
        "NumPy 2 keeps the precision of scalars (float32 with a Python float stays float32) and breaks the binary "
        "interface of extensions built for NumPy 1",
        "replay golden requests; rebuild extensions",
        "numpy.org, NumPy 2.0 migration guide",
        NUMPY,
    ),
    Risk.NUMPY_MINOR: Known(
        "sums, sorting and random numbers of pre- and post-processing may differ in the last digits, and deprecated "
        "names are gone",
        "replay golden requests with the tolerance that the product allows",
        "numpy.org, release notes of each minor version",
        NUMPY,
    ),
    Risk.PYTHON_MINOR: Known(
        "Lambda layers are saved as Python bytecode, which another Python does not read; pickles and compiled "
        "extensions are tied to a version as well",
        "run the model gate on models with Lambda layers; see whether every extension has a wheel for it",
        "keras.io, Lambda layer: (de)serialization limitations",
        PYTHON,
    ),
    Risk.ENVIRONMENT: Known(
        "settings that change numbers or memory differ between the images",
        "set them alike, or replay golden requests",
        "release notes of TensorFlow 2.15.0 on oneDNN: slightly different results by other orders of computation",
    ),
    Risk.BASE_SYSTEM: Known(
        "another system brings another C library and other TLS and image libraries",
        "see whether native extensions and certificates are there for it",
        "the images",
        SYSTEM,
    ),
    Risk.BECAME_ROOT: Known(
        "the image's own user is root, and stable's is not",
        "set USER in the image, or runAsNonRoot and runAsUser in the pod's security context",
        "the images",
    ),
    Risk.ENTRYPOINT: Known(
        "another program or other arguments are started unless the Deployment says which",
        "compare with command and args of the Deployment",
        "the images",
    ),
    Risk.TAG_DISAGREES: Known(
        "the tag promises another version than the image holds",
        "see which one was meant; a tag can be moved, a digest cannot",
        "the image",
    ),
}
