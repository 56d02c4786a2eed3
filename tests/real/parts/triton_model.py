"""A model of Triton's Python backend, around ``models/ranker.py``, which is copied beside it."""

import numpy as np
import ranker
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What the backend asks for."""

    def execute(self, requests):
        """One response a request. A negative feature below the bound is answered with an error of the model's own; one
        above it raises."""
        return [self._answered(triton.get_input_tensor_by_name(one, "x").as_numpy()) for one in requests]

    def _answered(self, x):
        if (x < -ranker.FAILS_ABOVE).any():
            return triton.InferenceResponse([], triton.TritonError("the model refuses"))
        scores, labels = ranker.answers(x)
        return triton.InferenceResponse(
            [triton.Tensor("scores", scores.astype(np.float32)), triton.Tensor("label", labels[:, np.newaxis])]
        )
