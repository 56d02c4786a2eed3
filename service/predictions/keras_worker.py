"""A small Keras classifier in a process of its own: trained on past windows, it says of new requests which arm they
look like. Started as a script, so that nothing else ever imports TensorFlow; it needs only NumPy and Keras.

Asked on standard input, answered on standard output, one question after the other: a line of JSON with the numbers of
rows (``canary``, ``stable``, ``new``), their length ``dims`` and a ``seed``, then the rows as little-endian float32.
The answer is a line of JSON, ``{"said": n}``, and n float32 between -1 and 1, or ``{"failed": why}``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

EPOCHS = 20
MOST_NUMBERS = 50_000_000
"""Of one question: 200 MB."""


def train_and_say(canary: Any, stable: Any, new: Any, seed: int) -> Any:
    """(n,) what the classifier says of ``new``, from -1 (stable) to 1 (canary)."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(seed)
    x = np.concatenate([canary, stable])
    y = np.concatenate([np.ones(len(canary)), -np.ones(len(stable))]).astype("float32")
    # Both arms weigh the same, however many requests each has.
    weight = np.where(y > 0, 0.5 / len(canary), 0.5 / len(stable)) * len(y)
    middle, spread = x.mean(0), x.std(0) + 1e-6
    model = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            keras.layers.Dense(32, activation="relu", kernel_regularizer="l2"),
            keras.layers.Dense(1, activation="tanh"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    model.fit((x - middle) / spread, y, sample_weight=weight, epochs=EPOCHS, batch_size=64, verbose=0)
    said = np.asarray(model.predict((new - middle) / spread, verbose=0))[:, 0]
    return np.clip(np.nan_to_num(said), -1.0, 1.0)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until there are no more questions."""
    import numpy as np

    while line := source.readline(10_000):
        asked = json.loads(line)
        dims = int(asked["dims"])
        counts = [int(asked[name]) for name in ("canary", "stable", "new")]
        if not 0 < dims * sum(counts) <= MOST_NUMBERS:
            raise SystemExit("a question has no numbers, or too many")
        canary, stable, new = (np.frombuffer(source.read(4 * n * dims), "<f4").reshape(n, dims) for n in counts)
        answer: dict[str, Any]
        try:
            said = train_and_say(canary, stable, new, int(asked["seed"])).astype("<f4")
        except Exception as error:  # noqa: BLE001 - whatever it is, the question gets an answer
            answer, body = {"failed": f"{type(error).__name__}: {error}"[:300]}, b""
        else:
            answer, body = {"said": len(said)}, said.tobytes()
        sink.write(json.dumps(answer).encode() + b"\n" + body)
        sink.flush()


if __name__ == "__main__":
    os.nice(10)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # Whatever a library prints must not get between the answers.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, own)
