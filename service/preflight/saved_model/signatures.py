"""Whether clients of the stable model can go on calling the candidate as they do."""

from __future__ import annotations

from collections.abc import Mapping

from service.preflight.saved_model.graph import Signature, Tensor


def lost(stable: Mapping[str, Signature], candidate: Mapping[str, Signature]) -> list[str]:
    """What a request that stable answers would miss, each a line for people; empty: all is kept.

    New signatures and outputs, optional inputs and inputs that take more shapes are no loss.
    """
    lines: list[str] = []
    for key, old in sorted(stable.items()):
        if key.startswith("__"):
            continue
        new = candidate.get(key)
        if new is None:
            names = ", ".join(sorted(k for k in candidate if not k.startswith("__"))) or "none"
            lines.append(f"signature {key!r} is gone; the candidate has: {names}")
            continue
        if old.method != new.method:
            lines.append(f"signature {key!r} has the method {new.method!r} instead of {old.method!r}")
        for name, tensor in sorted(old.inputs.items()):
            found = new.inputs.get(name)
            if found is None:
                lines.append(f"signature {key!r} takes no input {name!r} any more")
            elif found.dtype != tensor.dtype or not _takes(found, tensor):
                lines.append(f"signature {key!r} takes {name!r} as {_shown(found)} instead of {_shown(tensor)}")
        for name, tensor in sorted(new.inputs.items()):
            if name not in old.inputs and name not in new.optional:
                lines.append(f"signature {key!r} needs an input {name!r} ({_shown(tensor)}) that stable does not have")
        for name, tensor in sorted(old.outputs.items()):
            found = new.outputs.get(name)
            if found is None:
                lines.append(f"signature {key!r} gives no output {name!r} any more")
            elif found.dtype != tensor.dtype or not _takes(tensor, found):
                lines.append(f"signature {key!r} gives {name!r} as {_shown(found)} instead of {_shown(tensor)}")
    return lines


def _takes(wide: Tensor, narrow: Tensor) -> bool:
    """Whether every shape of ``narrow`` is one of ``wide``."""
    if wide.shape is None:
        return True
    if narrow.shape is None or len(narrow.shape) != len(wide.shape):
        return False
    return all(w in (-1, n) for w, n in zip(wide.shape, narrow.shape, strict=True))


def _shown(tensor: Tensor) -> str:
    if tensor.shape is None:
        return f"{tensor.dtype} of any shape"
    return f"{tensor.dtype}[{', '.join('any' if size < 0 else str(size) for size in tensor.shape)}]"
