"""`serinus preflight image`, against a registry on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.registry.serving import LoopbackRegistry, Pusher, served
from tests.unit.cli.test_cli import serinus
from tests.unit.preflight.images import official


@pytest.fixture(scope="module")
def registry() -> Iterator[LoopbackRegistry]:
    """With basic auth; serves from a thread of its own, because the command is a process that the test waits for."""
    ours = LoopbackRegistry("basic")
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with served(ours):
            push = Pusher(ours.host, ours.basic)
            for version in ("2.12.0", "2.13.0", "2.16.1"):
                image = official(version, f"{version}-gpu")
                environment = [f"{name}={value}" for name, value in image.environment.items()]
                await push.image(
                    "tf/tensorflow",
                    f"{version}-gpu",
                    config={"Env": environment, "Labels": image.labels},
                    history=image.history,
                )
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield ours
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def logins(registry: LoopbackRegistry, tmp_path: Path) -> Path:
    file = tmp_path / "logins.json"
    auth = base64.b64encode(b"anna:word").decode()
    file.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    return file


def look(registry: LoopbackRegistry, tag: str, logins: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return serinus(
        "preflight", "image", f"{registry.host}/tf/tensorflow:{tag}", "--allow", f"http://{registry.host}",
        "--logins", str(logins), *more,
    )  # fmt: skip


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def test_the_help_teaches_by_example_in_eighty_columns() -> None:
    done = serinus("preflight", "image", "--help")
    assert done.returncode == 0
    assert "serinus preflight image tensorflow/tensorflow:2.13.0-gpu" in done.stdout
    assert fits(done.stdout)


def test_one_image_is_told_with_where_each_value_stood(registry: LoopbackRegistry, logins: Path) -> None:
    done = look(registry, "2.13.0-gpu", logins)
    assert done.returncode == 0, done.stderr
    assert fits(done.stdout)
    assert "TensorFlow               2.13.0" in done.stdout
    assert "Source of TensorFlow: build step 8." in done.stdout
    # A digest is there to be copied.
    assert re.search(r"^ +sha256:[0-9a-f]{64}$", done.stdout, re.MULTILINE)


def test_two_images_are_compared_and_a_listed_risk_fails(registry: LoopbackRegistry, logins: Path) -> None:
    stable = ("--stable", f"{registry.host}/tf/tensorflow:2.13.0-gpu")
    passed = look(registry, "2.16.1-gpu", logins, *stable, "--json")
    assert passed.returncode == 0, passed.stderr
    report = json.loads(passed.stdout)
    assert report["facts"]["TensorFlow"] == "2.13.0 -> 2.16.1"
    assert report["facts"]["Keras"] == "2 -> 3"
    failed = look(registry, "2.16.1-gpu", logins, *stable, "--fail-on", "keras_2_to_3")
    assert failed.returncode == 1
    assert failed.stdout.startswith("FAILED  The policy forbids what this image changes: Keras 2 -> 3.")
    assert fits(failed.stdout)


def test_a_registry_inside_that_nobody_allowed_could_not_be_looked_at(registry: LoopbackRegistry) -> None:
    done = serinus("preflight", "image", f"{registry.host}/tf/tensorflow:2.13.0-gpu")
    assert done.returncode == 3
    assert "COULD NOT LOOK" in done.stdout
    assert "TensorFlow               2.13.0" in done.stdout  # by its tag
    assert fits(done.stdout)


def test_settings_may_hold_hosts_and_logins(registry: LoopbackRegistry, logins: Path, tmp_path: Path) -> None:
    config = tmp_path / "serinus.yaml"
    config.write_text(
        f"api: {{auth: 'off'}}\n"
        f"preflight: {{allowed_hosts: ['http://{registry.host}'], registry_logins_file: {logins}}}\n"
    )
    done = serinus("preflight", "image", f"{registry.host}/tf/tensorflow:2.12.0-gpu", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    config.write_text("api: {auth: 'off'}\npreflight: {allowed_hosts: ['http://a/b']}\n")
    wrong = serinus("preflight", "image", "a", "--config", str(config))
    assert wrong.returncode == 2  # 1 is a gate that failed
    assert "preflight.allowed_hosts" in wrong.stderr
    assert "has not the form" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("UPPER CASE",), "is no repository"),
        (("a:1", "--fail-on", "keras_2_to_3"), "--stable"),
        (("a:1", "--stable", "b:1", "--fail-on", "nothing"), "known risks: framework_changed"),
        (("a:1", "--allow", "http://a/b"), "allowed host"),
        (("a:1", "--platform", "arm64"), "found 'arm64'; write it as linux/amd64"),
        (("a:1", "--config", "no-such.yaml"), "cannot read no-such.yaml"),
    ],
)
def test_a_wrong_argument_says_what_was_found(arguments: tuple[str, ...], said: str) -> None:
    done = serinus("preflight", "image", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert fits(done.stderr)


def test_logins_that_cannot_be_read_are_told_without_what_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "logins.json"
    file.write_text('{"auths": {"r": {"auth": "s3cr3t"}}}')
    done = serinus("preflight", "image", "a:1", "--logins", str(file))
    assert done.returncode == 3
    assert "registry_logins_file" in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr
