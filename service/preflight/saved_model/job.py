"""Asks the candidate's TensorFlow in a Kubernetes Job, in the candidate's own image.

A termination message holds 4,096 bytes and what a TensorFlow has registered is over a megabyte, so the comparison is
done inside: the Job is given the model's needs, deduplicated and packed, and the source of `check`, and answers with
what it found. The Job has no token, no privilege and no writable place but /tmp; neither the model nor any secret goes
there. It is named by whom it is for and what it asks, so that asking twice is asking once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import msgspec

from service.model.gates.model import RuntimeJob
from service.preflight.saved_model.check import GRAVITY, Found, Needs
from service.preflight.saved_model.runtime import FORMAT, QUIET, NoAnswer, own_source

MESSAGE_BYTES = 4096
"""Of one container; the kubelet cuts what is longer."""
MAX_NEEDS_BYTES = 100_000
"""Linux takes 128 KiB for one variable. A model of 400 different uses needs 4,000."""
POLL_S = 2.0
KEPT_S = 600
MESSAGE_PATH = "/dev/termination-log"


@dataclass(frozen=True, slots=True)
class Ended:
    """How the Job's container ended. ``reason`` is the kubelet's, for example OOMKilled."""

    exit_code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a Job now: how its container ended, or why there is none yet."""

    ended: Ended | None
    failed: bool
    """The Job itself was given up: its time was over, or its pod could not be made."""
    waiting: str
    """The last reason for waiting: ImagePullBackOff, Unschedulable, or nothing."""


class Jobs(Protocol):
    """A cluster's Jobs. Errors are the ring's: Unavailable when the same call may work later, Refused otherwise."""

    async def create(self, namespace: str, manifest: Mapping[str, Any]) -> None:
        """Make a Job; that one of this name is there already is no error."""
        ...

    async def standing(self, namespace: str, name: str) -> Standing:
        """How a Job stands."""
        ...

    async def delete(self, namespace: str, name: str) -> None:
        """Take a Job and its pods away; that it is gone already is no error."""
        ...


class Answer(TypedDict):
    """What the Job says."""

    format: int
    versions: dict[str, str]
    found_n: int
    found: list[Found]


def manifest(
    needs: Needs, of: RuntimeJob, *, device: str, imports: tuple[str, ...] = (), whose: str = ""
) -> dict[str, Any]:
    """The Job. Raises NoAnswer when the needs are too many for one variable.

    whose : the release that it is for, so that no other one's look takes it away
    """
    packed = base64.b85encode(zlib.compress(json.dumps(needs, separators=(",", ":")).encode(), 9)).decode()
    if len(packed) > MAX_NEEDS_BYTES:
        raise NoAnswer(
            f"the model uses ops in {len(needs['uses']):,} different ways, {len(packed):,} bytes packed: more than a "
            f"Job is given ({MAX_NEEDS_BYTES:,})",
            "Ask an interpreter with the candidate's TensorFlow instead (`python`), or a dump of it",
        )
    asked = {"device": device, "imports": list(imports), "path": MESSAGE_PATH, "limit_bytes": MESSAGE_BYTES - 96}
    digest = hashlib.sha256(json.dumps([whose, packed, asked, of.model_dump(mode="json")]).encode()).hexdigest()[:16]
    name = f"serinus-preflight-{digest}"
    labels = {"app.kubernetes.io/name": "serinus-preflight", "app.kubernetes.io/managed-by": "serinus"}
    environment = {**QUIET, "HOME": "/tmp", "TMPDIR": "/tmp", "SERINUS_NEEDS": packed}  # noqa: S108
    container = {
        "name": "check",
        "image": of.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [of.python, "-I", "-c", source(asked)],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {
            "requests": {"cpu": of.cpu, "memory": of.memory},
            "limits": {"cpu": of.cpu, "memory": of.memory, "ephemeral-storage": "256Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": MESSAGE_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "containers": [container],
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsGroup": of.user_id,
            "runAsNonRoot": True,
            "runAsUser": of.user_id,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 5,
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "128Mi"}}],
    }
    if of.pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": of.pull_secret}]
    if of.runtime_class is not None:
        pod["runtimeClassName"] = of.runtime_class
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": of.namespace, "labels": labels},
        "spec": {
            "activeDeadlineSeconds": of.within_s,
            "backoffLimit": 0,
            "template": {
                # A sidecar would neither be needed nor let the Job end.
                "metadata": {"labels": {**labels, "sidecar.istio.io/inject": "false"}},
                "spec": pod,
            },
            "ttlSecondsAfterFinished": KEPT_S,
        },
    }


def source(asked: Mapping[str, Any]) -> str:
    """What the Job's Python runs: `check` and `inside` as one text, and the call."""
    future = "from __future__ import annotations\n"
    inside = own_source("inside").replace(future, "")
    return (
        f"{own_source('check')}\n\n{inside}\n\n"
        "import base64, zlib\n"
        "needs = json.loads(zlib.decompress(base64.b85decode(os.environ['SERINUS_NEEDS'])))\n"
        f"answer(needs, check=check, **{dict(asked)!r})\n"
    )


async def asked_in_job(
    jobs: Jobs,
    needs: Needs,
    of: RuntimeJob,
    *,
    device: str,
    imports: tuple[str, ...] = (),
    whose: str = "",
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Answer:
    """What the candidate's TensorFlow lacks, by a Job. Raises NoAnswer when it gives none, and what ``jobs`` raises.

    The Job is taken away once it has answered or was given up. Safe to repeat and to cancel: it ends by itself.
    """
    wanted = manifest(needs, of, device=device, imports=imports, whose=whose)
    name = wanted["metadata"]["name"]
    where = f"the Job {of.namespace}/{name} in {of.image}"
    standing = Standing(None, False, "")
    await jobs.create(of.namespace, wanted)
    try:
        async with asyncio.timeout(of.longest_s):
            for _ in range(int(of.longest_s / POLL_S)):
                standing = await jobs.standing(of.namespace, name)
                if standing.ended is not None or standing.failed:
                    break
                await sleep(POLL_S)
    except TimeoutError:
        pass  # An API server that is slow takes longer than the pauses; the last standing says what is known.
    await jobs.delete(of.namespace, name)
    ended = standing.ended
    if ended is None:
        reason = f" ({standing.waiting})" if standing.waiting else ""
        raise NoAnswer(
            f"{where} did not run to its end within {of.within_s} s{reason}",
            "Look whether the image can be pulled and the pod be scheduled; `within_s` covers both",
        )
    if ended.exit_code:
        last = next((line for line in reversed(ended.message.splitlines()) if line.strip()), "it said nothing")
        raise NoAnswer(
            f"{where} ended with {ended.exit_code} ({ended.reason or 'no reason'}): {last[:200]}",
            f"The image must have {of.python} with TensorFlow; an image of TensorFlow Serving has none",
        )
    try:
        answer = msgspec.json.decode(ended.message.encode(), type=Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NoAnswer(
            f"{where} answered in another form: {str(error)[:200]}", "Look at the pod's termination message"
        ) from error
    if answer["format"] != FORMAT or any(one["code"] not in GRAVITY for one in answer["found"]):
        raise NoAnswer(f"{where} answered in another format", "Look at the pod's termination message")
    return answer
