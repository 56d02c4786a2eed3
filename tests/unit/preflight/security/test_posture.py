"""As whom a container runs, and what of the node it may touch: the truth tables."""

from __future__ import annotations

from typing import Any

import pytest

from service.model.gates.security import Posture
from service.preflight.security.checks import Outcome
from service.preflight.security.posture import NoSpec, Seen, judge, user
from service.preflight.security.workload import selector_of, workload

GOOD, BAD, UNSEEN = Outcome.GOOD, Outcome.BAD, Outcome.UNSEEN
SAFE = {"runAsUser": 1000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}


@pytest.mark.parametrize(
    ("container", "pod", "image", "outcome", "said"),
    [
        # runAsUser comes before everything, the container's before the pod's.
        ({"runAsUser": 1000}, {}, None, GOOD, "1000 (container)"),
        ({"runAsUser": 1000}, {"runAsUser": 0}, "0", GOOD, "1000 (container)"),
        ({}, {"runAsUser": 1000}, "root", GOOD, "1000 (pod)"),
        ({"runAsUser": 0}, {"runAsUser": 1000}, "1000", BAD, "0, root (container)"),
        ({}, {"runAsUser": 0}, "1000", BAD, "0, root (pod)"),
        ({"runAsUser": 0}, {"runAsNonRoot": True}, None, BAD, "0, root (container), which runAsNonRoot"),
        ({"runAsUser": 1, "runAsNonRoot": True}, {}, "app", GOOD, "1 (container)"),
        # The image's user: numbers, names, none.
        ({}, {}, "1000", GOOD, "1000 (image)"),
        ({}, {}, "1000:0", GOOD, "1000 (image)"),
        ({}, {}, "", BAD, "none, root (image)"),
        ({}, {}, "0", BAD, "0, root (image)"),
        ({}, {}, "00:1000", BAD, "00, root (image)"),
        ({}, {}, "root", BAD, "root, root (image)"),
        ({}, {}, "root:app", BAD, "root, root (image)"),
        ({}, {}, ":1000", BAD, "none, root (image)"),
        ({}, {}, "app", UNSEEN, "«app» (image), a name"),
        ({}, {}, "99999999999", UNSEEN, "a name"),
        ({}, {}, "-1", UNSEEN, "a name"),
        ({}, {}, None, UNSEEN, "not known"),
        # runAsNonRoot changes no user: the kubelet refuses root, and names.
        ({"runAsNonRoot": True}, {}, "1000", GOOD, "1000 (image)"),
        ({"runAsNonRoot": True}, {}, None, GOOD, "not root (runAsNonRoot"),
        ({}, {"runAsNonRoot": True}, None, GOOD, "not root (runAsNonRoot"),
        ({"runAsNonRoot": False}, {"runAsNonRoot": True}, None, UNSEEN, "not known"),
        ({"runAsNonRoot": True}, {}, "", BAD, "none, root (image), which runAsNonRoot makes the kubelet"),
        ({"runAsNonRoot": True}, {}, "app", BAD, "a name, which runAsNonRoot makes the kubelet refuse to start"),
    ],
)  # fmt: skip
def test_the_effective_user(
    container: dict[str, Any], pod: dict[str, Any], image: str | None, outcome: Outcome, said: str
) -> None:
    found = user(container, pod, image)
    assert found.outcome is outcome
    assert said in found.said
    assert bool(found.to_do) is (outcome is not GOOD)


def test_what_the_kubelet_says_of_a_running_container_comes_first() -> None:
    assert user({}, {}, "app", 1000).outcome is GOOD
    assert user({"runAsUser": 1000}, {}, None, 0).outcome is BAD


def spec(context: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"containers": [{"name": "tf", "image": "x", "securityContext": SAFE | (context or {})}], **changes}


def bad(seen: Seen) -> list[str]:
    return [check.said for check in seen.checks if check.outcome is not GOOD]


def test_a_pod_that_takes_no_right_passes_every_check() -> None:
    everything = Posture(seccomp=True, drop_all=True, runtime_classes=("gvisor",))
    seen = judge(
        spec(
            {"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}, runtimeClassName="gvisor"
        ),
        everything,
    )
    assert bad(seen) == []
    assert seen.facts == {"user": "1000 (container)", "root file system": "read-only", "runtime": "gvisor"}


@pytest.mark.parametrize(
    ("context", "changes", "rule", "said"),
    [
        ({"readOnlyRootFilesystem": False}, {}, {}, "container tf: no read-only root file system"),
        ({"readOnlyRootFilesystem": None}, {}, {}, "container tf: no read-only root file system"),
        ({"allowPrivilegeEscalation": None}, {}, {}, "container tf: privilege escalation is allowed"),
        ({"allowPrivilegeEscalation": True}, {}, {}, "container tf: privilege escalation is allowed"),
        ({"privileged": True}, {}, {}, "container tf: privileged"),
        ({"capabilities": {"add": ["NET_ADMIN", "CAP_SYS_PTRACE"]}}, {}, {}, "adds capabilities NET_ADMIN, SYS_PTRACE"),
        ({"capabilities": {"add": ["ALL"]}}, {}, {}, "adds capabilities ALL"),
        ({"capabilities": {"drop": ["NET_RAW"]}}, {}, {"drop_all": True}, "does not drop all capabilities"),
        ({}, {"hostNetwork": True}, {}, "shares with the node: hostNetwork"),
        ({}, {"hostPID": True, "hostIPC": True}, {}, "shares with the node: hostPID, hostIPC"),
        ({}, {"volumes": [{"name": "d", "hostPath": {"path": "/"}}]}, {}, "shares with the node: hostPath volume d"),
        ({}, {}, {"seccomp": True}, "container tf: no seccomp profile"),
        ({"seccompProfile": {"type": "Unconfined"}},
         {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, {"seccomp": True}, "no seccomp profile"),
        ({}, {}, {"runtime_classes": ("gvisor", "kata")}, "no runtime class, where gvisor or kata is asked for"),
        ({}, {"runtimeClassName": "runc"}, {"runtime_classes": ("gvisor",)}, "runtime class runc, where gvisor"),
    ],
)  # fmt: skip
def test_each_right_that_is_taken_is_found_and_has_a_remedy(
    context: dict[str, Any], changes: dict[str, Any], rule: dict[str, Any], said: str
) -> None:
    seen = judge(spec(context, **changes), Posture(**rule))
    (one,) = bad(seen)
    assert said in one
    assert all(check.to_do for check in seen.checks if check.outcome is BAD)


@pytest.mark.parametrize(
    ("context", "changes", "rule"),
    [
        ({"readOnlyRootFilesystem": False}, {}, {"read_only_root": False}),
        ({"allowPrivilegeEscalation": True}, {}, {"no_privilege_escalation": False}),
        ({"runAsUser": 0}, {}, {"non_root": False}),
        ({}, {"hostNetwork": True}, {"no_host": False}),
        ({"capabilities": {"add": ["NET_BIND_SERVICE"]}}, {}, {}),
        ({"capabilities": {"add": ["SYS_PTRACE"]}}, {}, {"capabilities": ("SYS_PTRACE",)}),
        ({}, {"securityContext": {"seccompProfile": {"type": "Localhost"}}}, {"seccomp": True}),
        ({}, {"volumes": [{"name": "d", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}]}, {}),
    ],
)
def test_what_the_policy_does_not_ask_is_tolerated(
    context: dict[str, Any], changes: dict[str, Any], rule: dict[str, Any]
) -> None:
    assert bad(judge(spec(context, **changes), Posture(**rule))) == []


def test_a_privileged_container_is_found_beside_the_candidate_and_the_rest_of_it_is_not_asked() -> None:
    both = spec(initContainers=[{"name": "proxy", "securityContext": {"privileged": True, "runAsUser": 0}}])
    assert bad(judge(both, Posture(), containers={"tf"})) == ["init container proxy: privileged: root on the node"]
    assert len(bad(judge(both, Posture()))) == 4


def test_a_host_port_is_found() -> None:
    with_port = spec()
    with_port["containers"][0]["ports"] = [{"containerPort": 8501}, {"containerPort": 8500, "hostPort": 8500}]
    assert bad(judge(with_port, Posture())) == ["shares with the node: host port 8500"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "there is no container at all; there are: none"),
        ({"containers": "x"}, "spec.containers is 'x', not a list"),
        ({"containers": ["x"]}, r"spec.containers\[0\] is 'x', not a mapping"),
        (spec({"runAsUser": "1000"}), "runAsUser of the container is '1000', not a number"),
        (spec({"runAsUser": True}), "runAsUser of the container is True, not a number"),
        (spec({"runAsNonRoot": "true"}), "runAsNonRoot of the container is 'true'"),
        (spec({"readOnlyRootFilesystem": "true"}), "readOnlyRootFilesystem is 'true', not true or false"),
        (spec({"allowPrivilegeEscalation": 0}), "allowPrivilegeEscalation is 0"),
        (spec({"privileged": "yes"}), "privileged is 'yes'"),
        (spec({"capabilities": ["ALL"]}), "not a mapping"),
        (spec(hostNetwork="true"), "hostNetwork is 'true'"),
        (spec(securityContext="x"), "spec.securityContext is 'x'"),
        (spec(volumes={"hostPath": "/"}), "spec.volumes is"),
    ],
)
def test_a_spec_with_wrong_types_is_no_pass(given: dict[str, Any], why: str) -> None:
    with pytest.raises(NoSpec, match=why):
        judge(given, Posture())


def test_a_container_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(NoSpec, match="there is no container model; there are: tf"):
        judge(spec(), Posture(), containers={"model"})


def deployment(image: str = "x:2", **changes: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "tf", "image": image}]}}
    return {"kind": "Deployment", "metadata": {"name": "tf"}, "spec": {"template": template, **changes}}


def pod(name: str, image: str = "x:2", **changes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "tf", "image": image}, {"name": "istio-proxy", "image": "p"}]},
        "status": {"phase": "Running"},
        **changes,
    }


def test_only_pods_of_the_present_template_that_live_are_looked_at() -> None:
    found = workload(
        deployment(),
        [
            pod("good"),
            pod("old", "x:1"),
            pod("done", status={"phase": "Succeeded"}),
            pod("going", metadata={"name": "going", "deletionTimestamp": "2026-11-26T00:00:00Z"}),
        ],
    )
    assert [one.name for one in found.pods] == ["good"]
    assert found.images() == {"tf": "x:2"}
    assert found.images(["istio-proxy"]) == {}


def test_a_running_container_says_its_image_and_its_user() -> None:
    status = {
        "containerStatuses": [
            {"name": "tf", "imageID": "x@sha256:1", "user": {"linux": {"uid": 1000, "gid": 1000}}},
            {"name": "istio-proxy", "imageID": ""},
        ]
    }
    (one,) = workload(deployment(), [pod("a", status=status)]).pods
    assert (one.image_ids, one.uids) == ({"tf": "x@sha256:1"}, {"tf": 1000})


@pytest.mark.parametrize(
    "given", [None, [], "x", {}, {"kind": "Pod"}, deployment(template=None), deployment(template={"spec": {}})]
)
def test_what_is_no_deployment_is_said(given: object) -> None:
    with pytest.raises(NoSpec):
        workload(given)


def test_a_selector_is_written_as_the_api_asks_for_it() -> None:
    selector = {
        "matchLabels": {"app": "tf", "track": "canary"},
        "matchExpressions": [
            {"key": "v", "operator": "In", "values": ["1", "2"]},
            {"key": "w", "operator": "NotIn", "values": ["3"]},
            {"key": "x", "operator": "Exists"},
            {"key": "y", "operator": "DoesNotExist"},
        ],
    }
    assert selector_of(deployment(selector=selector)) == "app=tf,track=canary,v in (1,2),w notin (3),x,!y"
    with pytest.raises(NoSpec, match="operator Near"):
        selector_of(deployment(selector={"matchExpressions": [{"key": "v", "operator": "Near"}]}))
