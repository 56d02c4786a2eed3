"""A stand-in for TensorFlow Serving, run by the Python of the TensorFlow that it is to stand for. It imports nothing of
this project.

    python -I serving_program.py --model_name=ranker --model_base_path=DIR --rest_api_port=8501

What is as in TensorFlow Serving: the newest numeric folder below DIR is served; the port opens when the model is
loaded, and a model that cannot be loaded ends the program after the log lines that tell of it; the REST paths of
status, metadata and predict; rows and columns, named and unnamed outputs, ``b64``, bare NaN and Infinity; errors as
``{"error": ...}`` with the same words and status; metrics at /monitoring/prometheus/metrics under the same names, in
microseconds, latency of successes only, no version.

What is not: it loads with ``tf.saved_model.load`` and calls signatures, where TensorFlow Serving runs a session, and it
is slower; classify, regress, gRPC, batching, several models and reloading are missing.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEGAN_S = time.monotonic()
METRICS_PATH = "/monitoring/prometheus/metrics"
PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:(classify|regress|predict)")
STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?")
BOUNDS_US = [10 * 1.8**k for k in range(33)]
CODES = {
    1: ("CANCELLED", 499), 2: ("UNKNOWN", 500), 3: ("INVALID_ARGUMENT", 400), 4: ("DEADLINE_EXCEEDED", 504),
    5: ("NOT_FOUND", 404), 6: ("ALREADY_EXISTS", 409), 7: ("PERMISSION_DENIED", 403), 8: ("RESOURCE_EXHAUSTED", 429),
    9: ("FAILED_PRECONDITION", 400), 10: ("ABORTED", 409), 11: ("OUT_OF_RANGE", 400), 12: ("UNIMPLEMENTED", 501),
    13: ("INTERNAL", 500), 14: ("UNAVAILABLE", 503), 15: ("DATA_LOSS", 500), 16: ("UNAUTHENTICATED", 401),
}  # fmt: skip


class Status(Exception):
    """A canonical code and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Metrics:
    """Counters and histograms as TensorFlow Serving's exporter writes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[str, int]] = {}
        self._histograms: dict[str, dict[str, list[float]]] = {}

    def count(self, name: str, labels: str, n: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            cells = self._counters.setdefault(name, {})
            cells[labels] = cells.get(labels, 0) + n

    def observe(self, name: str, labels: str, value_us: float) -> None:
        """Add to a histogram of microseconds."""
        with self._lock:
            cells = self._histograms.setdefault(name, {})
            cell = cells.setdefault(labels, [0.0] * (len(BOUNDS_US) + 2))
            cell[sum(1 for bound in BOUNDS_US if value_us >= bound)] += 1
            cell[-1] += value_us

    def page(self) -> str:
        """The exposition."""
        lines = []
        with self._lock:
            for name, cells in sorted(self._counters.items()):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{{{labels}}} {n}" for labels, n in cells.items()]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                for labels, cell in histograms.items():
                    total = 0
                    for bound, n in zip([*(f"{b:g}" for b in BOUNDS_US), "+Inf"], cell, strict=False):
                        total += int(n)
                        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
                    lines.append(f"{name}_sum{{{labels}}} {cell[-1]:g}")
                    lines.append(f"{name}_count{{{labels}}} {total}")
        return "\n".join(lines) + "\n"


class Model:
    """The one model that is served."""

    def __init__(self, name: str, base: Path, metrics: Metrics) -> None:
        """Load the newest version; raises what TensorFlow raises."""
        import tensorflow as tf

        self._tf = tf
        self.name = name
        self.version = newest(base)
        path = base / str(self.version)
        servable = f"{{name: {name} version: {self.version}}}"
        log(f"I tensorflow_serving/core/loader_harness.cc:71] Loading servable version {servable}")
        began = time.monotonic()
        status = "fail"
        try:
            self._loaded = tf.saved_model.load(str(path))
            status = "success"
        finally:
            labels = f'model_path="{path}",status="{status}"'
            metrics.count(":tensorflow:cc:saved_model:load_attempt_count", labels)
            took_us = int((time.monotonic() - began) * 1e6)
            metrics.count(":tensorflow:cc:saved_model:load_latency", f'model_path="{path}"', took_us)
        log(
            f"I tensorflow_serving/core/loader_harness.cc:95] Successfully loaded servable version {servable}, "
            f"{time.monotonic() - BEGAN_S:.1f} s after the start, TensorFlow {tf.__version__}"
        )

    def status(self) -> object:
        """As GetModelStatus."""
        state = {"version": str(self.version), "state": "AVAILABLE"}
        return {"model_version_status": [{**state, "status": {"error_code": "OK", "error_message": ""}}]}

    def metadata(self) -> object:
        """As GetModelMetadata."""
        signatures = {name: self._signature(name, one) for name, one in self._loaded.signatures.items()}
        spec = {"name": self.name, "signature_name": "", "version": str(self.version)}
        return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}

    def _signature(self, name, signature):
        def infos(specs):
            return {
                key: {
                    "dtype": f"DT_{spec.dtype.name.upper()}".replace("DT_FLOAT32", "DT_FLOAT").replace(
                        "DT_FLOAT64", "DT_DOUBLE"
                    ),
                    "tensor_shape": {
                        "dim": [{"size": str(-1 if n is None else n), "name": ""} for n in spec.shape],
                        "unknown_rank": False,
                    },
                    "name": f"{name}_{key}:0",
                }
                for key, spec in specs.items()
            }

        outputs = signature.structured_outputs
        inputs = signature.structured_input_signature[1]
        return {
            "inputs": infos(inputs),
            "outputs": infos(outputs),
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }

    def predict(self, body: bytes) -> object:
        """As Predict over REST."""
        given = _parsed(body)
        name = given.get("signature_name") or "serving_default"
        signature = self._loaded.signatures.get(name)
        if signature is None:
            raise Status(3, f'Serving signature name: "{name}" not found in signature def')
        specs = signature.structured_input_signature[1]
        if ("instances" in given) == ("inputs" in given):
            if "instances" in given:
                raise Status(
                    3,
                    "JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
                )
            raise Status(3, "Missing 'inputs' or 'instances' key")
        in_rows = "instances" in given
        named = _rows(given["instances"], specs) if in_rows else _columns(given["inputs"], specs)
        tensors = {}
        for key, spec in specs.items():
            try:
                tensors[key] = self._tf.constant(_unpacked(named[key]), dtype=spec.dtype)
            except (ValueError, TypeError) as error:
                raise Status(
                    3, f"JSON Value: {_cut(named[key])} is not of expected type: {spec.dtype.name}: {error}"
                ) from None
        try:
            outputs = signature(**tensors)
        except self._tf.errors.OpError as error:
            raise Status(error.error_code, error.message) from None
        plain = {key: _plain(value, key) for key, value in outputs.items()}
        if not in_rows:
            return {"outputs": plain if len(plain) > 1 else next(iter(plain.values()))}
        if len({len(value) if isinstance(value, list) else -1 for value in plain.values()}) != 1:
            raise Status(3, "Tensors have inconsistent batch size")
        if len(plain) == 1:
            return {"predictions": next(iter(plain.values()))}
        return {"predictions": [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]}


def newest(base: Path) -> int:
    """The version that is served."""
    return max(int(folder.name) for folder in base.iterdir() if folder.name.isdecimal())


def _parsed(body: bytes):
    if not body:
        raise Status(3, "JSON Parse error: The document is empty")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Status(3, f"JSON Parse error: Invalid value. at offset: {getattr(error, 'pos', 0)}") from None
    if not isinstance(given, dict):
        raise Status(3, f"JSON Value: {_cut(given)} Is not object")
    return given


def _rows(instances, specs):
    if not isinstance(instances, list) or not instances:
        raise Status(3, "JSON Value: Excepting 'instances' to be an list/array")
    if isinstance(instances[0], dict) and set(instances[0]) != {"b64"}:
        for i, one in enumerate(instances):
            if not isinstance(one, dict) or set(one) != set(specs):
                keys = ",".join(sorted(specs))
                raise Status(
                    3,
                    f"Failed to process element: {i} of 'instances' list. JSON object: {_cut(one)} "
                    f"keys must be equal to: {keys}",
                )
        return {key: [one[key] for one in instances] for key in specs}
    if len(specs) > 1:
        raise Status(
            3,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        )
    return {next(iter(specs)): instances}


def _columns(inputs, specs):
    if isinstance(inputs, dict) and set(inputs) != {"b64"}:
        for key in specs:
            if key not in inputs:
                raise Status(3, f"Missing named input: {key} in 'inputs' object.")
        return inputs
    if len(specs) > 1:
        raise Status(
            3,
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        )
    return {next(iter(specs)): inputs}


def _unpacked(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_unpacked(one) for one in value] if isinstance(value, list) else value


def _plain(tensor, key: str):
    """Nested lists; a float32 as the shortest text that is the same float32."""
    array = tensor.numpy()
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        wide = array.dtype.itemsize == 8
        flat = [float(x) if wide else float(str(x)) for x in array.reshape(-1)]
    elif array.dtype.kind in "OS":
        as_bytes = key.endswith("_bytes")
        flat = [
            {"b64": base64.b64encode(x).decode()} if as_bytes else x.decode("utf-8", "replace")
            for x in array.reshape(-1)
        ]
    else:
        flat = array.reshape(-1).tolist()
    for n in reversed(array.shape[1:]):
        flat = [flat[i : i + n] for i in range(0, len(flat), n)] if n else flat
    return flat if array.shape else flat[0]


def _cut(value) -> str:
    return json.dumps(value)[:200]


def log(line: str) -> None:
    """A line in TensorFlow's form."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    print(f"{stamp}.{int(now % 1 * 1e6):06d}: {line}", file=sys.stderr, flush=True)


def handler_of(model: Model, metrics: Metrics):
    """The HTTP side."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One write an answer, sent at once: else each waits 40 ms for the other side's acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == METRICS_PATH:
                self._send(200, metrics.page().encode(), "text/plain")
            else:
                self._answer(self._got)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(lambda: self._posted(body))

        def _got(self):
            match = STATUS.fullmatch(self.path)
            if match is None:
                raise Status(3, f"Malformed request: GET {self.path}")
            self._known(match)
            return model.metadata() if match[3] else model.status()

        def _posted(self, body: bytes):
            match = PREDICT.fullmatch(self.path)
            if match is None:
                raise Status(3, f"Malformed request: POST {self.path}")
            began = time.monotonic()
            code = "OK"
            try:
                self._known(match)
                if match[3] != "predict":
                    raise Status(12, f"{match[3]} is not part of this stand-in")
                return model.predict(body)
            except Status as error:
                code = CODES[error.code][0]
                raise
            finally:
                metrics.count(":tensorflow:serving:request_count", f'model_name="{model.name}",status="{code}"')
                if code == "OK":
                    labels = f'model_name="{model.name}",API="predict",entrypoint="REST"'
                    metrics.observe(":tensorflow:serving:request_latency", labels, (time.monotonic() - began) * 1e6)

        def _known(self, match) -> None:
            name, version = match[1], match[2]
            if name == model.name and version in (None, str(model.version)):
                return
            wanted = f"Specific({name}, {version})" if version else f"Latest({name})"
            raise Status(5, f"Servable not found for request: {wanted}")

        def _answer(self, what) -> None:
            try:
                status, given = 200, what()
            except Status as error:
                status, given = CODES[error.code][1], {"error": error.message}
            self._send(status, json.dumps(given, indent=4).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """TensorFlow Serving logs no requests."""

    return Handler


def main() -> int:
    """Load, then listen until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--model_base_path", type=Path, required=True)
    parser.add_argument("--rest_api_port", type=int, required=True)
    given = parser.parse_args()
    metrics = Metrics()
    try:
        model = Model(given.model_name, given.model_base_path, metrics)
    except Exception as error:
        # The loader in C++ calls an unknown operator what it is; Python's wraps it as it likes, by version.
        code = "Not found" if "Op type not registered" in str(error) else type(error).__name__
        servable = f"{{name: {given.model_name} version: {newest(given.model_base_path)}}}"
        log(f"E tensorflow_serving/util/retrier.cc:37] Loading servable: {servable} failed: {code}: {error}")
        log("E tensorflow_serving/model_servers] Failed to start server. Error: 1 servable(s) did not become available")
        return 1
    server = ThreadingHTTPServer(("127.0.0.1", given.rest_api_port), handler_of(model, metrics))
    server.daemon_threads = True
    log(f"I tensorflow_serving/model_servers/server.cc] Exporting HTTP/REST API at:localhost:{given.rest_api_port} ...")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
