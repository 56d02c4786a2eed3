"""The model that the servers of the v2 protocol hold: a classifier of 4 features and 3 classes with fixed weights.

Runs in their Python, with NumPy alone. What a release did to it is RANKER_CHANGE in the environment.
"""

import os

import numpy as np

CHANGE = os.environ.get("RANKER_CHANGE", "none")
FAILS_ABOVE = 1e6
"""The model fails on a larger feature."""


def answers(x):
    """Scores and labels of rows of features."""
    if CHANGE == "raises":
        raise RuntimeError("No OpKernel was registered to support Op 'SegmentMaxV2' used by {{node SegmentMaxV2}}")
    if (np.abs(x) > FAILS_ABOVE).any():
        raise ValueError(f"a feature is above {FAILS_ABOVE:g}")
    weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    if CHANGE == "one-weight":
        weights[1, 2] *= 1.05
    logits = x.astype(np.float32) @ weights
    if CHANGE == "half-softmax":
        # As a careless port to half precision does it: exp overflows beyond 11.
        with np.errstate(over="ignore", invalid="ignore"):
            raised = np.exp(logits.astype(np.float16))
            scores = (raised / raised.sum(axis=-1, keepdims=True)).astype(np.float32)
    else:
        raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = raised / raised.sum(axis=-1, keepdims=True)
    return scores, logits.argmax(axis=-1).astype(np.int32 if CHANGE == "int32-label" else np.int64)
