"""`serinus preflight golden`: recorded requests, replayed to both versions by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.gate_report import fault, refuse, tell

if TYPE_CHECKING:
    from service.model.gates.golden import GoldenGate, GoldenSubject
    from service.model.gates.report import GateReport
    from service.preflight.golden.requests import GoldenRequest

OPTIONS = {
    "stable_url": "--stable",
    "canary_url": "--canary",
    "protocol": "--protocol",
    "absolute": "--absolute",
    "relative": "--relative",
    "top_k": "--top-k",
    "output": "--ignore",
    "min_requests": "--min-requests",
    "concurrency": "--concurrency",
    "timeout_s": "--timeout",
    "ready_within_s": "--ready-within",
}


def golden(
    file: Annotated[Path, typer.Argument(metavar="REQUESTS", help="Recorded requests, one JSON object a line")],
    stable: Annotated[str, typer.Option(metavar="URL", help="Where stable answers, such as http://host:8501")],
    canary: Annotated[str, typer.Option(metavar="URL", help="Where the candidate alone answers")],
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="tensorflow-serving, kserve-v2 or http-json; without it each path tells"),
    ] = None,
    absolute: Annotated[float, typer.Option(help="Numbers may differ by this much")] = 1e-5,
    relative: Annotated[float, typer.Option(help="and by this part of stable's value")] = 1e-4,
    top_k: Annotated[int | None, typer.Option(help="Last axes are class scores: the first K keep their order")] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="OUTPUT", help="Never compare this; * matches")] = None,
    max_rate: Annotated[float, typer.Option(help="Percent of requests that may differ beyond that")] = 0.0,
    min_requests: Annotated[int, typer.Option(help="Fewer compared requests show too little")] = 20,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer")] = 10.0,
    ready_within: Annotated[float, typer.Option(help="Seconds to wait until both are ready")] = 300.0,
    json_output: Annotated[bool, typer.Option("--json", help="The report as JSON")] = False,
) -> None:
    """Replay recorded requests to both versions; compare the answers.

    Each line of REQUESTS is one request to TensorFlow Serving, a server of the v2 protocol, or anything that answers
    JSON over HTTP:

    {"id": "r-1", "path": "/v1/models/ranker:predict", "body": {"instances": [[1.0, 2.0]]}}

    Every request is sent twice to either side, so it must be safe to repeat; where stable's own answers differ, it is
    counted apart. Errors, NaN, missing outputs, other shapes and types, on the candidate alone, always fail.

    Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look.
    """
    from pydantic import ValidationError

    from service.model.gates.golden import GoldenGate, GoldenSubject, Tolerance
    from service.preflight.golden import requests

    if not 0 <= max_rate < 100:
        refuse(f"--max-rate: expected a percentage of at least 0 and below 100, found {max_rate:g}")
    try:
        rule = GoldenGate(
            tolerances=(
                *(Tolerance(output=one, ignored=True) for one in ignore or ()),
                Tolerance(output="*", absolute=absolute, relative=relative, top_k=top_k),
            ),
            max_difference_rate=max_rate / 100,
            min_requests=min_requests,
        )
        subject = GoldenSubject(
            requests="requests",
            stable_url=stable,
            canary_url=canary,
            concurrency=concurrency,
            timeout_s=timeout,
            ready_within_s=ready_within,
            **({} if protocol is None else {"protocol": protocol}),
        )
        recorded = requests.read(file, subject.protocol)
    except ValidationError as error:
        refuse(fault(error, options=OPTIONS))
    except requests.RequestsError as error:
        refuse(str(error))
    tell(asyncio.run(_replayed(rule, subject, recorded)), json_output=json_output)


async def _replayed(rule: GoldenGate, subject: GoldenSubject, recorded: tuple[GoldenRequest, ...]) -> GateReport:
    import sys

    from service.preflight.golden.gate import replayed

    if not sys.stderr.isatty():
        return await replayed(rule, subject, recorded)
    with typer.progressbar(length=len(recorded), label="golden requests", file=sys.stderr) as bar:
        return await replayed(rule, subject, recorded, lambda done, _: bar.update(done - bar.pos))
