"""Findings in words: what was found, and what to do about the gravest."""

from __future__ import annotations

from service.preflight.saved_model.check import Found


def line(found: Found) -> str:
    """One finding, for people."""
    op, attr, seen, wanted = found["op"], found["attr"], found["seen"], found["wanted"]
    where = f" ({found['where']})" if found["where"] else ""
    match found["code"]:
        case "op_unknown":
            return f"op {op} is not registered{where}"
        case "op_removed":
            return f"op {op} may not be used by graphs of version {wanted} and newer; this one has {seen}{where}"
        case "min_consumer":
            return f"the graph asks for a runtime of graph version {seen} or newer; this one has {wanted}"
        case "bad_consumer":
            return f"the graph says that runtimes of graph version {seen}, as this one, read it wrongly"
        case "value_refused":
            return f"op {op} takes no {attr}={seen}; allowed: {wanted}{where}"
        case "attr_missing":
            return f"op {op} needs an attribute {attr} that the model does not give{where}"
        case "types_changed":
            return f"op {op} has the {attr} [{wanted}] instead of [{seen}]{where}"
        case "attr_unknown":
            return f"op {op} does not know the attribute {attr}={seen} and would ignore it{where}"
        case "default_changed":
            return f"op {op} has the default {attr}={wanted} instead of {seen}{where}"
        case "no_kernel":
            return f"op {op} has no kernel for {wanted}{f' with {seen}' if seen else ''}{where}"
        case "gpu_unseen":
            return f"this TensorFlow {seen} is built without GPUs, so it says nothing of kernels for GPU"
        case "jit_unseen":
            return f"functions are compiled by XLA, and this runtime does not say its kernels for {seen}"
        case "versions_ignored":
            return f"the graph rules out runtimes as this one (graph version {seen}); Python does not look at that"
        case "no_gpu_kernel":
            return f"op {op} is placed on a GPU and has a kernel for CPU only: it will run there{where}"
        case code:
            raise ValueError(f"no finding is called {code!r}")


def to_do(found: Found) -> str:
    """What a person can do about a finding."""
    match found["code"]:
        case "op_unknown":
            return (
                f"Export the model anew without {found['op']}, with the candidate's TensorFlow; or, if a library "
                f"registers it, put that into the image and name it under `imports`"
            )
        case "no_kernel":
            return f"Replace {found['op']}, or run on a device that has it: the first request that gets there fails"
        case "min_consumer" | "bad_consumer" | "op_removed":
            return "Export the model anew with the candidate's TensorFlow, or take a newer one"
        case "value_refused" | "attr_missing" | "types_changed" | "attr_unknown" | "default_changed":
            return f"Export the model anew with the candidate's TensorFlow, and look at what it does with {found['op']}"
        case "gpu_unseen":
            return "Ask the candidate's own image, built for GPUs; no GPU is needed for that"
        case _:
            return "Try the model with golden requests"
