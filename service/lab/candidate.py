"""What the demo's gates look at: a small SavedModel, what TensorFlow 2.13.0 has registered for it, and a scan report.

The op SegmentMaxV2 is a real case: TensorFlow 2.13.0 registers it and has no kernel for it on a CPU, so such a model
loads well and fails at the first request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLOAT, INT32 = 1, 3
"""TensorFlow's numbers for these types."""

RUNTIME_213: Mapping[str, Any] = {
    "format": 1,
    "versions": {"TensorFlow": "2.13.0", "Keras": "2.13.1", "NumPy": "1.24.3", "Python": "3.11.7"},
    "graph_version_n": 1482,
    "gpu_build": False,
    "ops": {
        "Placeholder": {
            "attrs": {"dtype": {"kind": "type", "default": None, "allowed": None}},
            "inputs": [],
            "outputs": ["$dtype"],
            "removed_n": 0,
        },
        "Relu": {
            "attrs": {"T": {"kind": "type", "default": None, "allowed": ["float", "double"]}},
            "inputs": ["$T"],
            "outputs": ["$T"],
            "removed_n": 0,
        },
        "SegmentMaxV2": {
            "attrs": {
                "T": {"kind": "type", "default": None, "allowed": ["float", "double"]},
                "Tindices": {"kind": "type", "default": None, "allowed": ["int32", "int64"]},
                "Tnumsegments": {"kind": "type", "default": ["type", "int32"], "allowed": ["int32", "int64"]},
            },
            "inputs": ["$T", "$Tindices", "$Tnumsegments"],
            "outputs": ["$T"],
            "removed_n": 0,
        },
    },
    "kernels": {
        "Placeholder": [{"device": "CPU", "label": "", "only": {}}],
        "Relu": [{"device": "CPU", "label": "", "only": {"T": ["float"]}}],
        "SegmentMaxV2": [],
    },
}
"""The part of `serinus preflight runtime` that the demo's models need, as TensorFlow 2.13.0 says it."""

POLICY: list[dict[str, Any]] = [
    {"gate": "security", "posture": None, "max_report_age_days": None},
    {"gate": "model", "data": False},
]
SUBJECTS: dict[str, Any] = {
    "security": {
        "report": {"file": "${canary_version}.json"},
        "image": "lab.example/tf-model-service:${canary_version}",
    },
    "model": {"path": "${canary_version}", "dump": "runtime.json"},
}


def furnish(folder: Path, version: str, fault: str) -> None:
    """Put a candidate's model and scan report into ``folder``, as a build pipeline would."""
    model = folder / "models" / version
    model.mkdir(parents=True, exist_ok=True)
    (model / "saved_model.pb").write_bytes(_saved_model(incompatible=fault == "incompatible-model"))
    (folder / "models" / "runtime.json").write_text(json.dumps(RUNTIME_213))
    reports = folder / "reports"
    reports.mkdir(exist_ok=True)
    (reports / f"{version}.json").write_text(json.dumps(_report(version, vulnerable=fault == "scan")))


def _report(version: str, *, vulnerable: bool) -> dict[str, Any]:
    """In the form of `trivy image --format json`."""
    found = {
        "VulnerabilityID": "CVE-2023-38545",
        "PkgName": "libcurl4",
        "InstalledVersion": "7.88.1-10",
        "FixedVersion": "7.88.1-10+deb12u4",
        "Severity": "CRITICAL",
    }
    return {
        "SchemaVersion": 2,
        "ArtifactName": f"lab.example/tf-model-service:{version}",
        "ArtifactType": "container_image",
        "Results": [
            {"Target": "debian 12.1", "Class": "os-pkgs", "Vulnerabilities": [found] if vulnerable else []},
        ],
    }


def _saved_model(*, incompatible: bool) -> bytes:
    """A graph of one op between a placeholder and its signature, in the wire format of saved_model.proto."""
    placeholder = _node("x", "Placeholder", attrs={"dtype": FLOAT})
    if incompatible:
        numbers = [_node(name, "Placeholder", attrs={"dtype": INT32}) for name in ("ids", "n")]
        types = {"T": FLOAT, "Tindices": INT32, "Tnumsegments": INT32}
        nodes = [placeholder, *numbers, _node("y", "SegmentMaxV2", "x", "ids", "n", attrs=types)]
    else:
        nodes = [placeholder, _node("y", "Relu", "x", attrs={"T": FLOAT})]
    info = _message(1, _message(4, b"serve"), _message(5, b"2.12.0"))
    graph = _message(2, *nodes, _message(4, _number(1, 1395)))
    signature = _message(
        5,
        _message(1, b"serving_default"),
        _message(2, _tensor(1, "x"), _tensor(2, "y"), _message(3, b"tensorflow/serving/predict")),
    )
    return _number(1, 1) + _message(2, info, graph, signature)


def _node(name: str, op: str, *inputs: str, attrs: Mapping[str, int]) -> bytes:
    typed = [_message(5, _message(1, key.encode()), _message(2, _number(6, code))) for key, code in attrs.items()]
    given = [_message(3, one.encode()) for one in inputs]
    return _message(1, _message(1, name.encode()), _message(2, op.encode()), *given, *typed)


def _tensor(field: int, name: str) -> bytes:
    info = _message(2, _message(1, f"{name}:0".encode()), _number(2, FLOAT), _message(3))
    return _message(field, _message(1, name.encode()), info)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
