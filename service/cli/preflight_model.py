"""`serinus preflight model` and `runtime`: a model held by hand against a TensorFlow, and what a TensorFlow has."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.cli.gate_report import EXIT, refuse, tell, wrapped


class DeviceChoice(StrEnum):
    """Where a model is to run."""

    CPU = "CPU"
    GPU = "GPU"


def model(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A SavedModel's folder, a checkpoint or a .keras file")],
    runtime: Annotated[Path, typer.Option(help="A Python with the candidate's TensorFlow, or a dump of it")],
    stable: Annotated[Path | None, typer.Option(help="The model that is served now")] = None,
    device: Annotated[DeviceChoice, typer.Option(help="Where it is to run")] = DeviceChoice.CPU,
    functions: Annotated[bool, typer.Option("--functions", help="Python calls it, not only by signatures")] = False,
    tags: Annotated[str, typer.Option(metavar="TAGS", help="Tags of the graph that is loaded")] = "serve",
    imports: Annotated[
        list[str] | None, typer.Option("--import", metavar="MODULE", help="Module with more ops; repeat")
    ] = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Hold the variables to checksums")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="The gate's report as JSON")] = False,
) -> None:
    """Say whether a TensorFlow can load and run a model.

    The model is read without TensorFlow. --runtime is asked what it has
    registered: an interpreter in a subprocess, or a file written by
    `serinus preflight runtime`. Ops that are not registered, missing
    kernels (in branches never taken, too), refused attributes, lost
    signatures and damaged or other variables fail.

      serinus preflight model models/7 --runtime venv-2.13/bin/python
        --stable models/6

    Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look.
    """
    import asyncio
    import os

    from service.model.gates.model import Entry, ModelGate
    from service.preflight.saved_model.gate import by_dump, by_python, inspect

    rule = ModelGate.model_validate(
        {"device": device.value, "entry": Entry.FUNCTIONS if functions else Entry.SIGNATURES, "data": data}
    )
    if runtime.is_dir():
        refuse(
            f"--runtime {runtime} is a folder; name an interpreter, as {runtime}/bin/python of a virtual environment, "
            "or a file that `serinus preflight runtime` wrote"
        )
    if os.access(runtime, os.X_OK):
        # Not resolved: a virtual environment is known by the link's own place.
        ask = by_python(runtime.absolute(), device=device.value, imports=imports or ())
    else:
        ask = by_dump(runtime, device=device.value)
    wanted = tuple(one for one in tags.split(",") if one)
    tell(
        asyncio.run(inspect(rule, path.absolute(), stable=stable, ask=ask, tags=wanted, within_s=3600.0)),
        json_output=json_output,
    )


def runtime(
    python: Annotated[Path | None, typer.Argument(metavar="PYTHON", help="A Python with TensorFlow")] = None,
    script: Annotated[bool, typer.Option("--script", help="Print the script that asks, for an image")] = False,
    imports: Annotated[
        list[str] | None, typer.Option("--import", metavar="MODULE", help="Module with more ops; repeat")
    ] = None,
) -> None:
    """Print the ops and kernels that a TensorFlow has, as JSON.

    `serinus preflight model --runtime FILE` reads it. For an image whose
    Python is not at hand:

      serinus preflight runtime --script > ask.py

      docker run --rm -i IMAGE python - < ask.py > runtime.json

    Exit 0 printed, 2 wrong arguments, 3 could not be asked.
    """
    import asyncio

    from service.preflight.saved_model.runtime import WITHIN_S, NoAnswer, Script, run

    asking = Script.dumping(imports or ())
    if script:
        typer.echo(asking.source, nl=False)
        return
    if python is None:
        raise typer.BadParameter("name a Python with TensorFlow, or give --script")
    try:
        said = asyncio.run(run(python.absolute(), asking, within_s=WITHIN_S))
    except NoAnswer as error:
        typer.echo(wrapped(f"serinus: {error}. {error.to_do}."), err=True)
        raise typer.Exit(EXIT["could_not_look"]) from error
    typer.echo(said.decode())
