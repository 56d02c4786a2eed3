"""What the model gate costs on large models: `python -m tests.benchmarks.saved_model [FOLDER]`.

Each row is a process of its own that imports the gate, looks and says its time and its peak resident memory, beside
those of one that looks at a model of a few nodes. Files are sparse, so the disk's own time is not in the figures.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from tests.unit.preflight.saved_model.writing import (
    FLOAT,
    dtype,
    function,
    masked,
    meta_graph,
    msg,
    node,
    num,
    saved_model,
    shape,
    simple,
    table,
    text,
    varint,
    write_model,
)

GIB = 1 << 30
NODES_N = 100_000


def small(folder: Path) -> None:
    write_model(folder, simple())


def constants(folder: Path) -> None:
    """A graph of 1.9 GiB of which one constant is nearly all."""
    write_model(folder, b"")
    size = int(1.9 * GIB)

    def around(field: int, inside: bytes, before: bytes = b"") -> bytes:
        return varint(field << 3 | 2) + varint(len(before) + len(inside) + size) + before + inside

    value = around(2, around(8, around(4, b"")))
    constant = around(1, around(5, value, msg(1, "value")), msg(1, "big") + msg(2, "Const"))
    graph = around(2, around(2, constant))
    with (folder / "saved_model.pb").open("wb") as file:
        file.write(simple())
        file.write(graph)
        file.seek(size, 1)
        file.write(num(1, 1))


def nodes(folder: Path) -> None:
    """A function of many nodes, each with some attributes."""
    many = (
        node(f"layer/block_{n}/op", "Relu", f"layer/block_{n - 1}/op:output:0", field=3,
             attrs={"T": dtype(FLOAT), "_output_shapes": msg(1, msg(7, shape(-1, 64))), "shared_name": text(f"v{n}")})
        for n in range(NODES_N)
    )  # fmt: skip
    write_model(folder, saved_model(meta_graph(functions=[function("f", *many)])))


def variables(folder: Path) -> None:
    """A checkpoint of 2 GiB in 128 tensors."""
    small(folder)
    (folder / "variables").mkdir()
    size, checksum = 2 * GIB // 128, 0
    for _ in range(size // (1 << 20)):
        checksum = google_crc32c.extend(checksum, b"\0" * (1 << 20))
    entries = [(b"", num(1, 1))]
    for n in range(128):
        place = num(1, FLOAT) + msg(2, shape(size // 4)) + num(4, n * size) + num(5, size)
        entries.append((b"w%03d" % n, place + varint(6 << 3 | 5) + masked(checksum).to_bytes(4, "little")))
    (folder / "variables" / "variables.index").write_bytes(table(entries))
    with (folder / "variables" / "variables.data-00000-of-00001").open("wb") as file:
        file.truncate(2 * GIB)


MODELS = {"a few nodes": small, "1.9 GiB graph, one constant": constants, f"{NODES_N:,} nodes": nodes,
          "2 GiB of variables": variables}  # fmt: skip


def look(path: Path) -> dict[str, object]:
    """In a process of its own: look once."""
    from service.model.gates.model import ModelGate
    from service.preflight.saved_model.check import Needs
    from service.preflight.saved_model.gate import Answered, inspect

    async def ask(_: Needs) -> Answered:
        return Answered({}, [], 0)

    began, used_s = time.perf_counter(), time.process_time()
    report = asyncio.run(inspect(ModelGate(), path, stable=None, ask=ask))
    took_s, used_s = time.perf_counter() - began, time.process_time() - used_s
    # Not getrusage: its peak takes in what the parent held before this process was its own.
    status = Path("/proc/self/status").read_text()
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"took_s": took_s, "used_s": used_s, "peak_mib": peak_mib, "finding": report.finding.value}


def rows(folder: Path) -> Iterator[str]:
    for name, write in MODELS.items():
        path = folder / name.replace(" ", "_")
        write(path)
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.saved_model", "--look", str(path)], capture_output=True, check=True
        )
        seen = json.loads(done.stdout)
        yield (
            f"{name:<30} {seen['took_s']:6.2f} s, {seen['used_s']:5.2f} s of it on a core, "
            f"peak {seen['peak_mib']:4.0f} MiB, {seen['finding']}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--look"]:
        print(json.dumps(look(Path(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        for row in rows(Path(folder)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
