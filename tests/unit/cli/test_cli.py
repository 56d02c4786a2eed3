"""The command: teaches, answers in three forms, and says what to do next when something is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from service.telling import terminal
from service.telling.view import rollout_view, row_view
from tests.stories import START, Story, lean

ROOT = Path(__file__).parents[3]


def serinus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "80", "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, env=env,
    )  # fmt: skip


class FakeService:
    """Answers the routes that the command asks, from one story."""

    def __init__(self) -> None:
        self.story = Story().progressing().window().window(**lean(14))
        self.orders: list[tuple[str, Any]] = []
        self.url = ""

    async def rollouts(self, _: web.Request) -> web.Response:
        rows = [row_view(self.story.state).model_dump(mode="json")]
        return web.json_response({"rollouts": rows, "next_after": None, "counts": {}})

    async def one(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != self.story.state.id:
            return web.json_response({"detail": "there is no rollout 'x'", "status": 404}, status=404)
        rows = tuple(row for step in self.story.steps for row in step.journal)
        view = rollout_view(self.story.state, rows, (), START)
        return web.json_response(view.model_dump(mode="json"))

    async def order(self, request: web.Request) -> web.Response:
        self.orders.append((request.match_info["verb"], await request.json()))
        return web.json_response({"sentence": "Done.", "journal": 1, "rollout": {}})


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    fake = FakeService()
    loop = asyncio.new_event_loop()
    runner: web.AppRunner

    async def start() -> None:
        nonlocal runner
        app = web.Application()
        app.router.add_get("/api/v1/rollouts", fake.rollouts)
        app.router.add_get("/api/v1/rollouts/{id}", fake.one)
        app.router.add_post("/api/v1/rollouts/{id}/{verb}", fake.order)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


def test_help_teaches_and_imports_nothing_heavy() -> None:
    done = serinus("--help")
    assert done.returncode == 0
    assert "serinus demo" in done.stdout
    heavy = ("numpy", "sqlalchemy", "kubernetes", "statsmodels", "tensorflow", "aiohttp", "aiokafka")
    code = f"import sys, service.cli.main; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [(), ("preflight",), ("config",)])
def test_a_list_of_commands_says_whole_sentences_in_eighty_columns(command: tuple[str, ...]) -> None:
    done = serinus(*command, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    _, _, listed = done.stdout.partition("Commands:\n")
    assert listed
    assert [line for line in listed.splitlines() if not line.endswith((".", "`"))] == []
    assert "..." not in listed


@pytest.mark.parametrize(
    "command",
    ["serve", "demo", "doctor", "config", "get", "watch", "pause", "resume", "advance", "promote", "rollback", "wait",
     "send-event", "version", "freeze", "thaw", "plan", "export", "verify"],
)  # fmt: skip
def test_every_command_explains_itself(command: str) -> None:
    from typer.testing import CliRunner

    from service.cli.main import app

    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert done.output


def test_a_list_fits_eighty_columns_and_names_the_state(service: FakeService) -> None:
    done = serinus("get", "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert "PAUSED" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_and_yaml_hold_the_same(service: FakeService) -> None:
    import yaml

    one = serinus("get", service.story.state.id, "-o", "json", "--url", service.url)
    two = serinus("get", service.story.state.id, "-o", "yaml", "--url", service.url)
    assert json.loads(one.stdout) == yaml.safe_load(two.stdout)


def test_an_order_carries_its_reason(service: FakeService) -> None:
    done = serinus("resume", service.story.state.id, "--reason", "looked", SERINUS_URL=service.url)
    assert (done.returncode, done.stdout.strip()) == (0, "Done.")
    assert service.orders[-1] == ("resume", {"reason": "looked"})


def test_going_forward_without_a_reason_is_a_usage_error(service: FakeService) -> None:
    assert serinus("promote", "r-1", "--url", service.url).returncode == 2


def test_wait_ends_with_four_when_a_person_is_waited_for(service: FakeService) -> None:
    assert serinus("wait", service.story.state.id, "--timeout", "5", "--url", service.url).returncode == 4


def test_an_unknown_rollout_and_an_absent_service_are_told_apart(service: FakeService) -> None:
    unknown = serinus("get", "r-nope", "--url", service.url)
    assert (unknown.returncode, "there is no rollout" in unknown.stderr) == (1, True)
    absent = serinus("get", "--url", "http://127.0.0.1:1")
    assert absent.returncode == 1
    assert "no answer from Serinus at http://127.0.0.1:1" in absent.stderr
    assert "--url" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_a_bad_configuration_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("colour: red\napi: {auth: 'off'}\n")
    for command in (("config", "validate"), ("serve",)):
        done = serinus(*command, "--config", str(tmp_path / "s.yaml"))
        assert done.returncode == 1
        assert "colour" in done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout


def test_the_shipped_configuration_is_valid_and_prints() -> None:
    assert serinus("config", "validate", "-c", "config/serinus.yaml").stdout.startswith("ok: 5 policies")
    assert json.loads(serinus("config", "schema", "policy").stdout)["title"] == "Policy"
    assert serinus("config", "schema", "nonsense").returncode == 2


def test_settings_are_printed_as_they_may_be_written(tmp_path: Path) -> None:
    first = serinus("config", "print", "-c", "config/serinus.yaml")
    assert "bootstrap_servers" in first.stdout
    (tmp_path / "s.yaml").write_text(first.stdout)
    assert serinus("config", "print", "-c", str(tmp_path / "s.yaml")).stdout == first.stdout
    (tmp_path / "s.yaml").write_text("stop_s: 3\napi: {auth: 'off'}\n")
    refused = serinus("config", "print", "-c", str(tmp_path / "s.yaml"))
    assert refused.returncode == 1
    assert "rollbacks_per_hour, stop_within, tracing" in refused.stderr
    assert "--config" in serinus("config", "validate").stderr


def test_an_event_can_be_printed_instead_of_sent() -> None:
    done = serinus("send-event", "--service", "ml/x", "--version", "2", "--print")
    assert json.loads(done.stdout)["data"]["customData"]["canary"]["canaryVersion"] == "2"
    assert serinus("send-event", "--service", "x").returncode == 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_its_terminal_and_says_what_happens_without_you(width: int) -> None:
    story = Story().progressing().window().window(**lean(14))
    view = rollout_view(story.state, (), (), START)
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture, contextlib.suppress(BrokenPipeError):
        console.print(terminal.rollout(view, START))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    for part in ("PAUSED at 10 %", "Do nothing: ", "evidence", "30 %  60 %", "enforce"):
        assert part in text


def test_a_plan_says_in_eighty_columns_when_an_effect_is_found_and_when_it_cannot_be() -> None:
    asked = ("plan", "--requests", "600", "--weight", "10", "--slower", "1.3", "--errors", "0.11")
    done = serinus(*asked)
    assert done.returncode == 1, done.stderr  # errors of .1 to .11 % cannot be found
    assert "half of all rollouts find it within" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    found, lost = json.loads(serinus(*asked, "--json").stdout)["plans"]
    assert found["minutes"] <= 10
    assert (lost["minutes"], bool(lost["reason"])) == (None, True)


def test_a_plan_without_a_weight_names_the_smallest_and_one_without_an_effect_says_what_to_name() -> None:
    done = serinus("plan", "--requests", "6000", "--slower", "1.2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weight_percent"] <= 10
    unnamed = serinus("plan", "--requests", "600", "--weight", "10")
    assert (unnamed.returncode, "--slower" in unnamed.stderr) == (2, True)
    assert "as 2/18" in serinus("plan", "-r", "600", "--slower", "1.2", "--pods", "2").stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-r -5 -w 10 --slower 1.2", "requests a minute must lie above 0"),
        ("-r nan -w 10 --slower 1.2", "requests a minute must lie above 0"),
        ("-r 600 -w 150 --slower 1.2", "between 0 and 100 percent"),
        ("-r 600 -w 10 --slower 0.8", "a ratio above 1"),
        ("-r 600 -w 10 --slower nan", "a ratio above 1"),
        ("-r 600 -w 10 --errors 100", "a share between 0 and 1"),
        ("-r 600 -w 10 --errors 1 --stable-errors 0", "stable's errors are a share"),
        ("-r 600 -w 10 --slower 1.2 --pods 99999/99999", "1 to 1000"),
        ("-r 600 -w 10 --slower 1.2 --pods 2/18 --pod-spread 99999", "pod_spread"),
        ("-r 600 -w 10 --slower 1.2 --pod-spread 8", "--pods 2/18"),
        ("-r 600 -w 10 --slower 1.2 --spread 0", "spread of log latency"),
        ("-r 600 -w 10 --slower 1.2 --minutes 0", "--minutes must lie between"),
    ],
)
def test_a_plan_for_what_cannot_be_says_what_was_found_in_eighty_columns(options: str, said: str) -> None:
    done = serinus("plan", *options.split())
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_the_doctor_says_in_eighty_columns_what_to_set_where_nothing_answers(tmp_path: Path) -> None:
    config = tmp_path / "s.yaml"
    config.write_text(
        f"config_dir: {ROOT / 'config'}\napi: {{auth: 'off'}}\ndatabase: {{url: 'sqlite:///{tmp_path / 's.db'}'}}\n"
        "kafka: {bootstrap_servers: '127.0.0.1:1'}\nprometheus: {url: 'http://127.0.0.1:1'}\n"
    )
    done = serinus("doctor", "-c", str(config))
    assert done.returncode == 1
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert "outside of a cluster set kubernetes.kubeconfig" in said
    assert "preflight.models_dir is not set" in said
    as_json = json.loads(serinus("doctor", "-c", str(config), "-o", "json").stdout)
    assert {one["name"] for one in as_json if not one["ok"]} >= {"event bus", "metric store of default", "gates"}
