"""A model server as KServe's users write one: their class, KServe's server. Run by the Python that has KServe.

    python -I kserve_program.py --http_port=8080 --model_name=ranker --enable_grpc=false

The one thing that is not KServe's: it listens on loopback, where KServe knows only all addresses.
"""

import argparse
import sys
from pathlib import Path

import kserve
import kserve.protocol.rest.server as rest
import numpy as np
import uvicorn
from kserve import InferOutput, InferResponse
from kserve.utils.utils import generate_uuid

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import ranker


class OnLoopback(uvicorn.Config):
    """Whatever address KServe names."""

    def __init__(self, app, **options):
        super().__init__(app, **{**options, "host": "127.0.0.1"})


class Ranker(kserve.Model):
    """Answers in the form of the request."""

    def predict(self, payload, headers=None):
        """Rows of the v1 protocol, or tensors of v2."""
        if isinstance(payload, dict):
            scores, labels = ranker.answers(np.asarray(payload["instances"], dtype=np.float32))
            rows = zip(scores.tolist(), labels.tolist(), strict=True)
            return {"predictions": [{"scores": row, "label": label} for row, label in rows]}
        scores, labels = ranker.answers(payload.inputs[0].as_numpy())
        outputs = []
        for name, datatype, values in (
            ("scores", "FP32", scores),
            ("label", f"INT{8 * labels.itemsize}", labels),
        ):
            output = InferOutput(name, list(values.shape), datatype)
            output.set_data_from_numpy(values, binary_data=False)
            outputs.append(output)
        return InferResponse(payload.id or generate_uuid(), self.name, outputs)


if __name__ == "__main__":
    arguments, _ = argparse.ArgumentParser(parents=[kserve.model_server.parser]).parse_known_args()
    rest.uvicorn.Config = OnLoopback
    model = Ranker(arguments.model_name)
    model.load()
    kserve.ModelServer().start([model])
