"""The command line. Heavy imports happen inside the commands, so that `serinus --help` is there at once."""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.client import ApiError, Client
from service.cli.export import export, verify
from service.cli.plan import plan
from service.cli.preflight import app as preflight_app

app = typer.Typer(
    name="serinus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Judges a new release by a small share of its real traffic, with a kept error rate.\n\n"
        "Try it:            serinus demo\n\n"
        "Before traffic:    serinus preflight image CANDIDATE --stable IMAGE\n\n"
        "Plan it:           serinus plan --requests 600 --weight 10 --slower 1.1\n\n"
        "Check it:          serinus doctor --config serinus.yaml\n\n"
        "Run it:            serinus serve --config serinus.yaml\n\n"
        "Look:              serinus get, serinus watch ROLLOUT\n\n"
        "Act:               serinus rollback ROLLOUT, serinus pause ROLLOUT --reason TEXT\n\n"
        "The service is found at --url or SERINUS_URL, its token in SERINUS_TOKEN or SERINUS_TOKEN_FILE."
    ),
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at and check the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(preflight_app, name="preflight")
app.command("plan")(plan)
app.command("export")(export)
app.command("verify")(verify)


class Output(StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Fault(StrEnum):
    """Faults of the demo's candidate."""

    NONE = "none"
    LATENCY = "latency"
    TAIL = "tail"
    ERRORS = "errors"
    DRIFT = "drift"
    BLACKOUT = "blackout"
    OPKERNEL = "opkernel"
    MEMORY = "memory"
    GPU_MEMORY = "gpu-memory"
    SCAN = "scan"
    INCOMPATIBLE_MODEL = "incompatible-model"


class EventKind(StrEnum):
    """Kinds of deployment events."""

    DEPLOYED = "deployed"
    UPGRADED = "upgraded"
    ROLLEDBACK = "rolledback"
    REMOVED = "removed"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]
UrlOption = Annotated[str | None, typer.Option("--url", help="Where Serinus listens [SERINUS_URL]")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="File with the bearer token")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The settings file")]
RolloutArgument = Annotated[str, typer.Argument(help="A rollout's id, from `serinus get`")]


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the service until it is told to stop (SIGTERM)."""
    from service.app.run import serve as run

    raise typer.Exit(run(config))


@app.command()
def demo(
    fault: Annotated[
        Fault | None, typer.Option(help="Play only this one; without it a good and a slow release")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="No live view; one JSON object a release")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the drawn traffic")] = 1,
) -> None:
    """Play releases on an embedded world; needs no other program. Exit 0 when each ended as it should."""
    from service.lab.demo import run

    raise typer.Exit(run(fault.value if fault else None, json_output=json_output, seed=seed))


@app.command()
def doctor(config: ConfigOption = None, output: OutputOption = Output.TABLE) -> None:
    """Check all that Serinus asks, and the labels of your metrics.

    Broker, metric and log stores, API server rights, database, where gates look, PagerDuty key. Exit 1 when anything is
    wrong.
    """
    from service.app.doctor import run

    findings = run(config)
    if output is Output.TABLE:
        from service.cli.gate_report import wrapped

        for one in findings:
            typer.echo(wrapped(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.detail}", hanging=6))
    else:
        _print([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings], output)
    raise typer.Exit(0 if all(one.ok for one in findings) else 1)


@config_app.command("validate")
def config_validate(config: ConfigOption = None) -> None:
    """Check the settings and every policy, target and preset.

    Says each fault with its path. Exit 1 when there is any.
    """
    from service.settings import load, load_catalog

    catalog, presets = load_catalog(load(config))
    typer.echo(
        f"ok: {len(catalog.policies)} policies, {len(catalog.targets)} targets, {len(presets)} metric presets, "
        f"mode {catalog.mode.value}"
    )


@config_app.command("schema")
def config_schema(
    what: Annotated[str, typer.Argument(help="settings, policy, target, metrics or logs")] = "settings",
) -> None:
    """Print the JSON Schema of a configuration file."""
    from service.cli.schemas import configuration_schemas

    known = configuration_schemas()
    if what not in known:
        raise typer.BadParameter(f"no schema is called {what!r}; known: {', '.join(known)}")
    typer.echo(json.dumps(known[what], indent=2))


@config_app.command("print")
def config_print(config: ConfigOption = None, output: OutputOption = Output.YAML) -> None:
    """Print the settings after file and environment.

    Secrets are files, so none is shown.
    """
    from service.settings import load

    _print(load(config).model_dump(mode="json", by_alias=True), Output.YAML if output is Output.TABLE else output)


@app.command()
def get(
    rollout: Annotated[str | None, typer.Argument(help="A rollout's id; without it all are listed")] = None,
    state: Annotated[str | None, typer.Option(help="Only these phases, comma-separated")] = None,
    active: Annotated[bool | None, typer.Option("--active/--ended", help="Only running or only ended ones")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Part of service, namespace or version")] = None,
    output: OutputOption = Output.TABLE,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """List rollouts, or show one with its evidence."""
    client = Client(url, token_file)
    if rollout is not None:
        body = client.get(f"/rollouts/{_quoted(rollout)}")
        _show_one(body) if output is Output.TABLE else _print(body, output)
        return
    flag = None if active is None else str(active).lower()
    body = client.get("/rollouts", state=state, active=flag, q=query)
    if output is not Output.TABLE:
        _print(body, output)
        return
    from service.telling import terminal
    from service.telling.view import RowView

    _console().print(terminal.rollouts([RowView.model_validate(row) for row in body["rollouts"]]))
    if body["next_after"]:
        typer.echo("More follow; narrow with --query, --state or --active.")


@app.command()
def watch(rollout: RolloutArgument, url: UrlOption = None, token_file: TokenOption = None) -> None:
    """Show a rollout live until it ends; the last frame stays. Leave with Ctrl-C, which changes nothing."""
    from datetime import UTC, datetime

    from rich.live import Live

    from service.telling import terminal
    from service.telling.view import RolloutView

    client = Client(url, token_file)
    with Live(console=_console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            view = RolloutView.model_validate(client.get(f"/rollouts/{_quoted(rollout)}"))
            live.update(terminal.rollout(view, datetime.now(UTC)), refresh=True)
            if view.phase.terminal:
                return
            time.sleep(1.0)


@app.command()
def wait(
    rollout: RolloutArgument,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most")] = 3600.0,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Wait for the end.

    Exit 0 promoted, 3 rolled back, refused or withdrawn, 4 paused, held or waiting for a person, 5 timed out.
    """
    client = Client(url, token_file)
    deadline = time.monotonic() + timeout
    while True:
        body = client.get(f"/rollouts/{_quoted(rollout)}")
        code = {"promoted": 0, "rolled_back": 3, "ended": 3, "paused": 4, "held": 4}.get(body["phase"])
        if code is not None:
            typer.echo(body["sentence"])
            raise typer.Exit(code)
        if time.monotonic() >= deadline:
            typer.echo(f"still {body['phase']} after {timeout:.0f} s: {body['sentence']}", err=True)
            raise typer.Exit(5)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def _order(verb: str, rollout: str, reason: str, url: str | None, token_file: Path | None) -> None:
    answer = Client(url, token_file).send("POST", f"/rollouts/{_quoted(rollout)}/{verb}", {"reason": reason})
    typer.echo(answer["sentence"])


ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why; it is kept in the journal")]


@app.command()
def pause(
    rollout: RolloutArgument, reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None
) -> None:
    """Keep the weight as it is until somebody resumes."""
    _order("pause", rollout, reason, url, token_file)


@app.command()
def resume(
    rollout: RolloutArgument, reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None
) -> None:
    """Go on, overruling what paused or held it."""
    _order("resume", rollout, reason, url, token_file)


@app.command()
def advance(
    rollout: RolloutArgument, reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None
) -> None:
    """Go to the next stage now, whatever the evidence."""
    _order("advance", rollout, reason, url, token_file)


@app.command()
def promote(
    rollout: RolloutArgument, reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None
) -> None:
    """Give the candidate all traffic now, whatever the evidence."""
    _order("promote", rollout, reason, url, token_file)


@app.command()
def rollback(
    rollout: RolloutArgument,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; may be left out")] = "",
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Take all traffic back to stable; confirms a waiting rollback."""
    _order("rollback", rollout, reason, url, token_file)


@app.command()
def freeze(reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None) -> None:
    """The kill switch: no weight at all moves until `serinus thaw`."""
    Client(url, token_file).send("PUT", "/kill-switch", {"frozen": True, "reason": reason})
    typer.echo("Frozen: no weight moves.")


@app.command()
def thaw(reason: ReasonOption, url: UrlOption = None, token_file: TokenOption = None) -> None:
    """Let weights move again."""
    Client(url, token_file).send("PUT", "/kill-switch", {"frozen": False, "reason": reason})
    typer.echo("Thawed: weights move again.")


@app.command("send-event")
def send_event(
    service: Annotated[str, typer.Option(help="namespace/name")],
    version: Annotated[str | None, typer.Option(help="The candidate's version")] = None,
    stable_version: Annotated[str | None, typer.Option(help="What stable runs")] = None,
    kind: Annotated[EventKind, typer.Option(help="What happened")] = EventKind.UPGRADED,
    policy: Annotated[str | None, typer.Option(help="A policy that the target allows")] = None,
    weight: Annotated[int | None, typer.Option(help="First weight in percent, no larger than allowed")] = None,
    environment: Annotated[str, typer.Option(help="Environment id")] = "default",
    config: ConfigOption = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the message, send nothing")] = False,
) -> None:
    """Send a deployment event, as a deployment tool would."""
    import asyncio
    from datetime import UTC, datetime

    from service.events.sending import message

    namespace, slash, name = service.partition("/")
    if not slash or not name:
        raise typer.BadParameter(f"--service must be namespace/name, found {service!r}")
    sent = message(
        kind=kind.value,
        namespace=namespace,
        service=name,
        at=datetime.now(UTC),
        version=version,
        stable_version=stable_version,
        policy=policy,
        weight=weight,
        environment=environment,
    )
    if print_only:
        typer.echo(json.dumps(json.loads(sent.value), indent=2))
        return
    from service.app.run import connection_of
    from service.events.publisher import Producer
    from service.settings import load

    settings = load(config)

    async def send() -> None:
        producer = Producer(connection_of(settings.kafka))
        try:
            await producer.send(settings.kafka.topic, key=sent.key, value=sent.value, headers=list(sent.headers))
        finally:
            await producer.stop()

    asyncio.run(send())
    typer.echo(f"Sent {kind.value} of {service} to {settings.kafka.topic} on {settings.kafka.bootstrap_servers}.")


@app.command()
def version() -> None:
    """Print the version."""
    import importlib.metadata

    typer.echo(importlib.metadata.version("serinus"))


def _quoted(rollout: str) -> str:
    from urllib.parse import quote

    return quote(rollout, safe="")


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=False)


def _show_one(body: Any) -> None:
    from datetime import UTC, datetime

    from service.telling import terminal
    from service.telling.view import RolloutView

    _console().print(terminal.rollout(RolloutView.model_validate(body), datetime.now(UTC)))


def _print(body: Any, output: Output) -> None:
    if output is Output.JSON:
        typer.echo(json.dumps(body, indent=2))
        return
    import yaml

    typer.echo(yaml.safe_dump(body, sort_keys=False), nl=False)


def main() -> None:
    """Entry point: known errors become one sentence and exit status 1."""
    try:
        app()
    except ApiError as error:
        _fail(str(error))
    except Exception as error:
        if _speaks(error):
            _fail(str(error))
        raise


def _speaks(error: Exception) -> bool:
    """Whether the error's message is written for the person at the terminal."""
    names = {f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__}
    return bool(names & {"service.settings.SettingsError", "service.ring.ports.PortError"})


def _fail(sentence: str) -> None:
    print(f"serinus: {sentence}", file=sys.stderr)  # noqa: T201
    sys.exit(1)


if __name__ == "__main__":
    main()
