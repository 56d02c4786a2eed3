"""Runs in a real TensorFlow: loads models as Python and as a server does, runs them, and says what happened as JSON.

    python load.py MODEL...

``python`` is tf.saved_model.load, ``server`` the C++ loader that TensorFlow Serving uses, ``run`` a call of
serving_default after the former. Each is "" for success, else the error.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import tensorflow as tf

LIBRARY = ctypes.CDLL(str(Path(tf.__file__).parent / "libtensorflow_cc.so.2"))
for maker in ("TF_NewStatus", "TF_NewSessionOptions", "TF_NewGraph", "TF_LoadSessionFromSavedModel"):
    getattr(LIBRARY, maker).restype = ctypes.c_void_p
LIBRARY.TF_Message.restype = ctypes.c_char_p


def by_server(path):
    status = ctypes.c_void_p(LIBRARY.TF_NewStatus())
    options, graph = (ctypes.c_void_p(make()) for make in (LIBRARY.TF_NewSessionOptions, LIBRARY.TF_NewGraph))
    tags = (ctypes.c_char_p * 1)(b"serve")
    LIBRARY.TF_LoadSessionFromSavedModel(
        options, None, path.encode(), tags, ctypes.c_int(1), graph, None, status
    )  # fmt: skip
    code, message = LIBRARY.TF_GetCode(status), LIBRARY.TF_Message(status)
    return f"{code}: {message.decode(errors='replace')[:500]}" if code else ""


def attempt(act):
    try:
        return act() or ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"


said = {}
for path in sys.argv[1:]:
    kept = {}
    if os.path.isfile(path):
        said[path] = {"python": attempt(lambda p=path: tf.keras.models.load_model(p) and None)}
        continue

    def load(path=path, kept=kept):
        kept["model"] = tf.saved_model.load(path)

    def run(kept=kept):
        serve = kept["model"].signatures["serving_default"]
        (spec,) = serve.structured_input_signature[1].values()
        serve(tf.ones([2 if size is None else size for size in spec.shape], spec.dtype))

    result = said[path] = {"python": attempt(load), "server": attempt(lambda p=path: by_server(p))}
    result["run"] = attempt(run) if "model" in kept else "not loaded"
print(json.dumps(said))
