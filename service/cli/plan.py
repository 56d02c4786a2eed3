"""`serinus plan`: what can be found, at which weight and traffic, in how many minutes.

Asked before a release starts, so it needs no service: it plays the statistics on traffic like the caller's.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from analyzers import Effect, Plan

USUAL_POD_SPREAD_PERCENT = 3.0
LONGEST_MIN = 1440


def plan(
    requests_per_minute: Annotated[float, typer.Option("--requests", "-r", help="Requests a minute, both versions")],
    weight: Annotated[
        float | None, typer.Option("--weight", "-w", help="Canary weight in percent; without it the smallest is sought")
    ] = None,
    minutes: Annotated[int, typer.Option("--minutes", "-m", help="Planned length of the comparison")] = 60,
    slower: Annotated[list[float] | None, typer.Option(help="Find this slow-down of all requests (1.2)")] = None,
    errors: Annotated[list[float] | None, typer.Option(help="Find this error rate of the canary, percent")] = None,
    stable_errors: Annotated[float, typer.Option(help="Error rate of stable, percent")] = 0.1,
    spread: Annotated[float, typer.Option(help="Spread of log latency (.3 even, .6 usual, 1 wide)")] = 0.6,
    pods: Annotated[str | None, typer.Option(help="Canary and stable pods, as 2/18: pods are then the units")] = None,
    pod_spread: Annotated[float | None, typer.Option(help="How much pods differ in latency, percent (3)")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Say what can be found, in how many minutes; needs no service. Exit 1 when an effect cannot be found.

    It plays the same statistics that will judge, a few hundred times, on traffic like yours:

    serinus plan --requests 600 --weight 10 --slower 1.1 --errors 0.5

    Without --weight it names the smallest first weight at which half of all rollouts find everything in time.
    """
    from analyzers import Effect, MonitorConfig, Stable, recommend
    from analyzers import plan as played

    try:
        effects = [*(Effect(slower=x) for x in slower or ()), *(Effect(errors=x / 100) for x in errors or ())]
        if not effects:
            raise ValueError("name at least one effect: --slower 1.1 or --errors 0.5")
        both = _pods(pods)
        if not 0 < minutes <= LONGEST_MIN:
            raise ValueError(f"--minutes must lie between 1 and {LONGEST_MIN}, found {minutes}")
        if both is None and pod_spread is not None:
            raise ValueError("--pod-spread says how much pods differ; say how many there are with --pods 2/18")
        stable = Stable.log_normal(
            log_sd=spread,
            errors=stable_errors / 100,
            pods=both,
            pod_spread=(USUAL_POD_SPREAD_PERCENT if pod_spread is None else pod_spread) / 100 if both else 0.0,
        )
        config = MonitorConfig(planned_windows=minutes)
        why = ""
        if weight is None:
            weight, why = recommend(
                effects, bake_minutes=minutes, requests_per_minute=requests_per_minute, stable=stable, config=config
            )
            if weight is None:
                typer.echo(json.dumps({"weight_percent": None, "why": why}) if json_output else _wrapped(why))
                raise typer.Exit(1)
        plans = [
            played(e, weight_percent=weight, requests_per_minute=requests_per_minute, stable=stable, config=config)
            for e in effects
        ]
    except ValueError as error:
        typer.echo(_wrapped(f"Error: {error}"), err=True)
        raise typer.Exit(2) from None
    if json_output:
        rows = [
            {"effect": str(e), "canary_requests": p.canary_requests, "minutes": p.minutes, "found": p.found,
             "minutes_p90": p.minutes_p90, "reason": p.reason}
            for e, p in zip(effects, plans, strict=True)
        ]  # fmt: skip
        typer.echo(json.dumps({"weight_percent": weight, "plans": rows}))
    else:
        typer.echo(
            _wrapped(f"{why or f'At {weight:g} %'}, {requests_per_minute:g} requests a minute, {minutes} minutes:")
        )
        for line in _lines(effects, plans):
            typer.echo(line)
    raise typer.Exit(0 if all(p.minutes is not None for p in plans) else 1)


def _lines(effects: Sequence[Effect], plans: Sequence[Plan]) -> Iterator[str]:
    from analyzers.planning import NEARLY_ALL

    for effect, one in zip(effects, plans, strict=True):
        yield f"  {effect}"
        if one.minutes is None:
            yield _wrapped(one.reason, "    ")
            continue
        yield f"    half of all rollouts find it within {one.minutes:.0f} min ({one.canary_requests:,} canary requests)"
        late = "" if one.minutes_p90 is None else f"nine in ten within {one.minutes_p90:.0f} min, "
        by_the_end = "nearly all" if one.found > NEARLY_ALL else f"{100 * one.found:.0f} %"
        yield f"    {late}{by_the_end} by the end"
    yield "A release that behaves like stable is rolled back in 1 of 100 rollouts at most."


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 80, initial_indent=indent, subsequent_indent=indent)


def _pods(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    canary, slash, stable = given.partition("/")
    if not (slash and canary.isdecimal() and stable.isdecimal()):
        raise ValueError(f"--pods takes canary/stable, as 2/18, found {given[:40]!r}")
    return int(canary), int(stable)
