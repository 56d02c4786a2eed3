"""With which rights a pod runs: its security contexts and its image's user together, as the kubelet takes them. Pure.

What comes in is a pod's spec, of a Deployment's template or of a pod that runs; the words of the result are for people.
The container's security context comes before the pod's, and both before the image:

- ``runAsUser`` overrides the image's USER. With neither, the user is root.
- ``runAsNonRoot`` changes no user: it makes the kubelet refuse to start a container whose user is root, or whose USER
  is a name, because it cannot tell which number the name has. Nor can we: a name alone is UNSEEN.
- a missing ``allowPrivilegeEscalation`` means that it is allowed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.model.gates.security import Posture
from service.preflight.report import readable
from service.preflight.security.checks import Check, Outcome

MAX_NAMED_N = 5
_T = TypeVar("_T")


class NoSpec(Exception):
    """What was given is no pod's spec. The message says where it is not."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The posture of one pod, or of a template."""

    checks: tuple[Check, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class User:
    """As whom a container runs."""

    outcome: Outcome
    said: str
    """Such as ``1000 (pod)``."""
    to_do: str = ""


def judge(
    spec: Mapping[str, Any],
    rule: Posture,
    *,
    containers: Collection[str] | None = None,
    image_user: Callable[[str], str | None] = lambda _: None,
    running_uid: Callable[[str], int | None] = lambda _: None,
) -> Seen:
    """Hold a pod's spec against the policy.

    spec : of a pod; as the API server answers or as a manifest has it
    containers : which to look at; None: all, with the init containers. Privileged ones are looked for among all
    image_user : the USER in the image of the container of this name; empty for none (root), None for not known
    running_uid : the user that the kubelet says the container of this name has; None for not known
    Raises NoSpec.
    """
    everyone = list(_containers(spec))
    chosen = [one for one in everyone if containers is None or one.name in containers]
    missing = sorted(set(containers or ()) - {one.name for one in everyone})
    if missing or not chosen:
        there = ", ".join(readable(one.name, 63) for one in everyone[:MAX_NAMED_N]) or "none"
        raise NoSpec(f"there is no container {', '.join(missing) or 'at all'}; there are: {there}")
    pod = _context(spec, "spec.securityContext")
    checks: list[Check] = []
    users = [user(one.context, pod, image_user(one.name), running_uid(one.name)) for one in chosen]
    if rule.non_root:
        for one, found in zip(chosen, users, strict=True):
            checks.append(Check(found.outcome, f"{one.called}: user {found.said}", found.to_do))
    if rule.read_only_root:
        checks += _each(
            chosen,
            lambda one: _flag(one.context, "readOnlyRootFilesystem") is True,
            "read-only root file system",
            "no read-only root file system",
            "set readOnlyRootFilesystem: true, and mount an emptyDir where it has to write",
        )
    if rule.no_privilege_escalation:
        checks += _each(
            chosen,
            lambda one: _flag(one.context, "allowPrivilegeEscalation") is False,
            "no privilege escalation",
            "privilege escalation is allowed, which is the default",
            "set allowPrivilegeEscalation: false",
        )
    checks += _each(
        everyone,
        lambda one: _flag(one.context, "privileged") is not True,
        "not privileged",
        "privileged: root on the node",
        "set privileged: false",
    )
    checks += _capabilities(chosen, rule)
    if rule.no_host:
        checks.append(_host(spec, everyone))
    if rule.seccomp:
        checks += _each(
            chosen,
            lambda one: _seccomp(one.context, pod) in ("RuntimeDefault", "Localhost"),
            "a seccomp profile",
            "no seccomp profile",
            "set seccompProfile: {type: RuntimeDefault}",
        )
    runtime = spec.get("runtimeClassName") or ""
    checks += _runtime(runtime, rule)
    facts = {
        "user": ", ".join(dict.fromkeys(found.said for found in users))[:200],
        "root file system": "read-only" if all(one.read_only for one in chosen) else "writable",
        "runtime": readable(str(runtime), 100) or "the cluster's default",
    }
    return Seen(tuple(checks), facts)


def user(
    container: Mapping[str, Any], pod: Mapping[str, Any], image_user: str | None, running_uid: int | None = None
) -> User:
    """As whom a container runs, by its own and its pod's security context, its image and what the kubelet says."""
    if running_uid is not None:
        if running_uid == 0:
            return User(Outcome.BAD, "0, root (as it runs)", _SET_USER)
        return User(Outcome.GOOD, f"{running_uid} (as it runs)")
    uid, set_by = _first("runAsUser", container, pod, int)
    non_root, _ = _first("runAsNonRoot", container, pod, bool)
    refused = ", which runAsNonRoot makes the kubelet refuse to start" if non_root else ""
    if uid == 0:
        return User(Outcome.BAD, f"0, root ({set_by}){refused}", _SET_USER)
    if uid is not None:
        return User(Outcome.GOOD, f"{uid} ({set_by})")
    if image_user is None:
        if non_root:
            return User(Outcome.GOOD, "not root (runAsNonRoot; the image's user is not known)")
        return User(Outcome.UNSEEN, "not known: no runAsUser, and the image's user could not be read", _SET_USER)
    name = image_user.partition(":")[0].strip()
    number = int(name) if name.isascii() and name.isdigit() and len(name) <= 10 else None
    shown = readable(name, 40)
    if not name or name == "root" or number == 0:
        return User(Outcome.BAD, f"{shown or 'none'}, root (image){refused}", _SET_USER)
    if number is not None:
        return User(Outcome.GOOD, f"{number} (image)")
    if non_root:
        said = f"«{shown}» (image), a name, which runAsNonRoot makes the kubelet refuse to start"
        return User(Outcome.BAD, said, _SET_USER)
    return User(
        Outcome.UNSEEN, f"«{shown}» (image), a name, of which nobody outside the image knows the number", _SET_USER
    )


_SET_USER = "set runAsNonRoot: true and runAsUser to a number above 0, or give the image a numeric USER"


@dataclass(frozen=True, slots=True)
class _Container:
    name: str
    called: str
    context: Mapping[str, Any]
    ports: Sequence[Any]

    @property
    def read_only(self) -> bool:
        return self.context.get("readOnlyRootFilesystem") is True


def _containers(spec: Mapping[str, Any]) -> Iterator[_Container]:
    for field_name, word in (("containers", "container"), ("initContainers", "init container")):
        for at, one in enumerate(_list(spec.get(field_name), f"spec.{field_name}")):
            where = f"spec.{field_name}[{at}]"
            body = _map(one, where)
            name = str(body.get("name") or "")
            yield _Container(
                name,
                f"{word} {readable(name, 63)}",
                _context(body, f"{where}.securityContext"),
                _list(body.get("ports"), f"{where}.ports"),
            )


def _each(
    them: Sequence[_Container], good: Callable[[_Container], bool], fine: str, wrong: str, to_do: str
) -> list[Check]:
    """One check for all that are good, one for each that is not."""
    bad = [one for one in them if not good(one)]
    if not bad:
        return [Check(Outcome.GOOD, fine)]
    return [Check(Outcome.BAD, f"{one.called}: {wrong}", to_do) for one in bad]


def _capabilities(them: Sequence[_Container], rule: Posture) -> list[Check]:
    checks: list[Check] = []
    for one in them:
        given = _map(one.context.get("capabilities"), f"{one.called}: capabilities")
        added = [_capability(name) for name in _list(given.get("add"), f"{one.called}: capabilities.add")]
        over = [name for name in added if name not in rule.capabilities]
        if over:
            named = ", ".join(readable(name, 40) for name in over[:MAX_NAMED_N])
            checks.append(
                Check(Outcome.BAD, f"{one.called}: adds capabilities {named}", "take them out of capabilities.add")
            )
        dropped = [_capability(name) for name in _list(given.get("drop"), f"{one.called}: capabilities.drop")]
        if rule.drop_all and "ALL" not in dropped:
            checks.append(
                Check(Outcome.BAD, f"{one.called}: does not drop all capabilities", "set capabilities: {drop: [ALL]}")
            )
    return checks or [Check(Outcome.GOOD, "no capabilities beyond those allowed")]


def _capability(name: object) -> str:
    return str(name).upper().removeprefix("CAP_")


def _host(spec: Mapping[str, Any], everyone: Sequence[_Container]) -> Check:
    shared = [name for name in ("hostNetwork", "hostPID", "hostIPC") if _flag(spec, name) is True]
    for at, volume in enumerate(_list(spec.get("volumes"), "spec.volumes")):
        body = _map(volume, f"spec.volumes[{at}]")
        if body.get("hostPath") is not None:
            shared.append(f"hostPath volume {readable(str(body.get('name')), 63)}")
    for one in everyone:
        ports = [_map(port, f"{one.called}: ports").get("hostPort") for port in one.ports]
        shared += [f"host port {readable(str(port), 8)}" for port in ports if port]
    if not shared:
        return Check(Outcome.GOOD, "nothing of the node is shared")
    more = f" and {len(shared) - MAX_NAMED_N} more" if len(shared) > MAX_NAMED_N else ""
    return Check(
        Outcome.BAD,
        f"shares with the node: {', '.join(shared[:MAX_NAMED_N])}{more}",
        "take it out of the pod's spec, or set no_host: false in the policy",
    )


def _seccomp(container: Mapping[str, Any], pod: Mapping[str, Any]) -> object:
    for context in (container, pod):
        profile = _map(context.get("seccompProfile"), "seccompProfile")
        if profile:
            return profile.get("type")
    return None


def _runtime(runtime: object, rule: Posture) -> list[Check]:
    if not rule.runtime_classes:
        return []
    wanted = " or ".join(rule.runtime_classes)
    if runtime in rule.runtime_classes:
        return [Check(Outcome.GOOD, f"runtime class {runtime}")]
    found = f"runtime class {readable(str(runtime), 100)}" if runtime else "no runtime class"
    return [
        Check(Outcome.BAD, f"{found}, where {wanted} is asked for", f"set runtimeClassName: {rule.runtime_classes[0]}")
    ]


def _first(name: str, container: Mapping[str, Any], pod: Mapping[str, Any], kind: type[_T]) -> tuple[_T | None, str]:
    """The container's value, else the pod's, and who set it."""
    for context, who in ((container, "container"), (pod, "pod")):
        value = context.get(name)
        if value is not None:
            if type(value) is not kind:
                raise NoSpec(f"{name} of the {who} is {readable(reprlib.repr(value), 40)}, not a {_TYPES[kind]}")
            return value, who
    return None, ""


def _flag(context: Mapping[str, Any], name: str) -> bool | None:
    value = context.get(name)
    if value is not None and not isinstance(value, bool):
        # A text "true" in a manifest is refused by the API server; taken for a yes here it would be a false pass.
        raise NoSpec(f"{name} is {readable(reprlib.repr(value), 40)}, not true or false")
    return value


_TYPES: dict[type, str] = {int: "number", bool: "true or false"}


def _context(of: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    return _map(of.get("securityContext"), where)


def _map(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise NoSpec(f"{where} is {readable(reprlib.repr(value), 40)}, not a mapping")
    return value


def _list(value: object, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise NoSpec(f"{where} is {readable(reprlib.repr(value), 40)}, not a list")
    return value
