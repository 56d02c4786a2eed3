"""Log lines from pods, by the API server's documented API. No kubelet runs here, so a server on loopback plays both."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.app.clock import SystemClock
from service.cluster import connect
from service.lab.kube_api import KubeApi
from service.model.lines import LogSeries
from service.model.names import RolloutId
from service.model.observation import Availability, LineCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.sources import pod_logs
from service.sources.pod_logs import PodLogSource
from tests.shipped import patterns
from tests.stories import place

SET = patterns("tensorflow", "tensorflow-failures")
LINES = LogSeries.model_validate({"sets": ["tensorflow"], "lookback": 0}).with_sets({"tensorflow": SET})
PRESET = MetricsPreset(name="tf", metrics={"logs": LINES})
NAMESPACE = "ml-serving"
MISSING = "Op type not registered '{}' in binary running on pod. Make sure the Op and Kernel are registered."
PLACER = """\
Error: No OpKernel was registered to support Op 'FancyOp' used by {{node FancyOp}} with these attrs: [T=DT]
Registered devices: [CPU]
Registered kernels:
  <no registered kernels>"""
NONE = LineCounts((), (), (), ())


class Cluster:
    """Pods of two versions and what they wrote."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api
        self.now = time.time()

    def pod(self, name: str, version: str, *containers: str, restarts_n: int = 0, default: str = "") -> None:
        """A pod; the first container is its default unless an annotation says otherwise."""
        names = containers or ("serving",)
        self.api.put(
            "pods",
            {
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"app.kubernetes.io/name": "ranker", "version": version},
                    "annotations": {"kubectl.kubernetes.io/default-container": default} if default else {},
                },
                "spec": {"containers": [{"name": one} for one in names]},
                "status": {
                    "phase": "Running",
                    "containerStatuses": [{"name": one, "restartCount": restarts_n} for one in names],
                },
            },
        )
        for one in names:
            self.api.logs[(NAMESPACE, name, one, False)] = []

    def write(self, pod: str, text: str, ago_s: float, container: str = "serving", *, last: bool = False) -> None:
        """Some lines, so long before now."""
        listed = self.api.logs.setdefault((NAMESPACE, pod, container, last), [])
        listed += [(self.now - ago_s, line) for line in text.split("\n")]

    async def read(self, tmp_path: Path, preset: MetricsPreset = PRESET, **changes: Any) -> Reading:
        """The reading of the last minute."""
        labels = {
            "metrics": "tf",
            "stable_log_labels": {"app.kubernetes.io/name": "ranker", "version": "v1"},
            "canary_log_labels": {"app.kubernetes.io/name": "ranker", "version": "v2"},
        }
        query = WindowQuery(RolloutId("r"), "default", place(**(labels | changes)), ("logs",), self.now - 60, self.now)
        client = await connect(self.api.kubeconfig(tmp_path / "kubeconfig"))
        try:
            source = PodLogSource(client, {"tf": preset}, clock=SystemClock(), timeout_s=5)
            ((reading,),) = await source.collect([query])
            return reading
        finally:
            await client.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with KubeApi() as api:
        made = Cluster(api)
        for n in range(2):
            made.pod(f"stable-{n}", "v1")
        made.pod("canary-0", "v2")
        yield made


async def test_the_placers_message_of_several_lines_is_one_line_with_the_ops_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.write("canary-0", PLACER, 30)
    reading = await cluster.read(tmp_path)
    assert reading.availability is Availability.ENOUGH
    assert reading.counts == LineCounts(("missing-opkernel FancyOp",), (1,), (0,), (0,))
    assert reading.detail.startswith("missing-opkernel FancyOp: 1 of the canary, none of stable for 1 h")


async def test_a_line_is_not_shown_where_the_preset_forbids_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.write("canary-0", MISSING.format("FancyOp") + " secret", 30)
    preset = MetricsPreset(name="tf", metrics={"logs": LINES.model_copy(update={"quoted": False})})
    reading = await cluster.read(tmp_path, preset)
    assert reading.detail == "missing-opkernel FancyOp: 1 of the canary, none of stable for 1 h"


async def test_what_any_pod_of_stable_wrote_then_or_before_is_known_of_stable(cluster: Cluster, tmp_path: Path) -> None:
    for op in "ABC":
        cluster.write("canary-0", MISSING.format(op), 30)
    cluster.write("stable-0", MISSING.format("A"), 20)
    cluster.write("stable-1", MISSING.format("B"), 1800)
    cluster.write("stable-1", MISSING.format("C"), 4000)
    reading = await cluster.read(tmp_path)
    assert isinstance(reading.counts, LineCounts)
    alone = dict(zip(reading.counts.names, reading.counts.only_on_canary(), strict=True))
    assert alone == {"missing-opkernel A": 0, "missing-opkernel B": 0, "missing-opkernel C": 1}


async def test_healthy_quiet_pods_are_zero_and_lines_of_other_minutes_are_not_this_windows(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.write("canary-0", MISSING.format("A"), 61)
    cluster.write("canary-0", MISSING.format("A"), -1)
    assert (await cluster.read(tmp_path)).counts == NONE


async def test_what_a_pod_wrote_before_the_first_window_counts_for_a_while(cluster: Cluster, tmp_path: Path) -> None:
    cluster.write("canary-0", MISSING.format("A"), 300)
    cluster.write("canary-0", MISSING.format("B"), 400)
    series = LINES.model_copy(update={"lookback_s": 300.0})
    reading = await cluster.read(tmp_path, MetricsPreset(name="tf", metrics={"logs": series}))
    assert reading.counts == LineCounts(("missing-opkernel A",), (1,), (0,), (0,))


async def test_an_arm_without_pods_is_no_zero(cluster: Cluster, tmp_path: Path) -> None:
    del cluster.api.objects[("pods", NAMESPACE, "canary-0")]
    reading = await cluster.read(tmp_path)
    assert (reading.availability, reading.counts) == (Availability.NO_SERIES, None)
    assert "no pods of the canary with the labels app.kubernetes.io/name=ranker,version=v2" in reading.detail


async def test_what_a_container_wrote_before_it_was_restarted_is_read_too(cluster: Cluster, tmp_path: Path) -> None:
    cluster.pod("canary-0", "v2", restarts_n=1)
    cluster.write("canary-0", "Failed to start server. Error: Unknown: 1 servable(s) did not load", 40, last=True)
    reading = await cluster.read(tmp_path)
    assert reading.counts == LineCounts(("load-failure",), (1,), (0,), (0,))


async def test_a_container_that_waits_to_start_has_written_nothing(cluster: Cluster, tmp_path: Path) -> None:
    del cluster.api.logs[(NAMESPACE, "canary-0", "serving", False)]
    assert (await cluster.read(tmp_path)).counts == NONE


async def test_a_container_that_the_preset_names_and_no_pod_has_is_no_zero(cluster: Cluster, tmp_path: Path) -> None:
    series = LINES.model_copy(update={"container": "server"})
    reading = await cluster.read(tmp_path, MetricsPreset(name="tf", metrics={"logs": series}))
    assert (reading.availability, reading.counts) == (Availability.AWAY, None)
    assert "pod canary-0 has no container server, but serving; name one in the preset" in reading.detail


@pytest.mark.parametrize("named", [True, False])
async def test_a_sidecars_lines_are_not_the_servers(cluster: Cluster, tmp_path: Path, named: bool) -> None:
    cluster.pod("canary-0", "v2", "istio-proxy", "serving", default="" if named else "serving")
    cluster.write("canary-0", MISSING.format("Proxy"), 30, "istio-proxy")
    cluster.write("canary-0", MISSING.format("Server"), 30, "serving")
    preset = PRESET
    if named:
        series = LINES.model_copy(update={"container": "serving"})
        preset = MetricsPreset(name="tf", metrics={"logs": series})
    reading = await cluster.read(tmp_path, preset)
    assert isinstance(reading.counts, LineCounts)
    assert reading.counts.names == ("missing-opkernel Server",)


async def test_a_forbidden_namespace_is_away_and_says_which_right_is_missing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.api.forbidden.add(NAMESPACE)
    reading = await cluster.read(tmp_path)
    assert (reading.availability, reading.counts) == (Availability.AWAY, None)
    assert "answers 403" in reading.detail
    assert "rbac.podLogs: true" in reading.detail


async def test_an_api_server_that_is_away_is_away(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.api.stop()
    assert (await cluster.read(tmp_path)).availability is Availability.AWAY


async def test_a_log_that_is_too_long_is_no_zero_but_a_match_in_it_counts(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_logs, "MAX_LOG_BYTES", 2000)
    cluster.write("canary-0", "\n".join("x" * 100 for _ in range(100)), 30)
    cluster.write("canary-0", MISSING.format("A"), 30)  # beyond what is read
    reading = await cluster.read(tmp_path)
    assert (reading.availability, reading.counts) == (Availability.DEGRADED, None)
    assert "pod canary-0 wrote more than 2000 bytes" in reading.detail
    cluster.api.logs[(NAMESPACE, "canary-0", "serving", False)].reverse()
    reading = await cluster.read(tmp_path)
    assert reading.counts == LineCounts(("missing-opkernel A",), (1,), (0,), (0,))
    # And when it is stable's log that is cut, nobody knows whether the canary is alone.
    cluster.write("stable-0", "\n".join("x" * 100 for _ in range(100)), 30)
    reading = await cluster.read(tmp_path)
    assert (reading.availability, reading.counts) == (Availability.DEGRADED, None)
    assert reading.detail.startswith("whether stable has them is not known")
    assert "missing-opkernel A: 1 of the canary" in reading.detail


async def test_a_stable_log_of_many_megabytes_is_read_to_its_end_where_the_canary_has_a_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.write("canary-0", MISSING.format("A"), 30)
    cluster.write("canary-0", MISSING.format("B"), 30)
    cluster.write("stable-0", "\n".join("x" * 1000 for _ in range(5000)), 1800)
    cluster.write("stable-0", MISSING.format("A"), 20)
    reading = await cluster.read(tmp_path)
    assert isinstance(reading.counts, LineCounts)
    assert dict(zip(reading.counts.names, reading.counts.only_on_canary(), strict=True)) == {
        "missing-opkernel A": 0,
        "missing-opkernel B": 1,
    }


async def test_the_logs_of_an_arm_have_one_bound_together(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_logs, "MAX_ARM_BYTES", 2500)
    cluster.write("canary-0", MISSING.format("A"), 30)
    for n in range(2):
        cluster.write(f"stable-{n}", "\n".join("x" * 100 for _ in range(15)), 30)
    reading = await cluster.read(tmp_path)
    assert (reading.availability, reading.counts) == (Availability.DEGRADED, None)
    assert reading.detail.startswith("whether stable has them is not known")


class Heard(dict[tuple[str, str, str, bool], list[tuple[float, str]]]):
    """Logs that remember of which pods they were asked for."""

    def __init__(self, logs: dict[tuple[str, str, str, bool], list[tuple[float, str]]]) -> None:
        super().__init__(logs)
        self.pods: list[str] = []

    def get(self, key: Any, default: Any = None) -> Any:
        self.pods.append(key[1])
        return super().get(key, default)


async def test_stable_is_read_only_where_there_is_something_to_decide_and_only_until_it_is_decided(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2, 20):
        cluster.pod(f"stable-{n:02}", "v1")
        cluster.write(f"stable-{n:02}", MISSING.format("A"), 20)
    cluster.api.logs = heard = Heard(cluster.api.logs)
    assert (await cluster.read(tmp_path)).counts == NONE
    assert heard.pods == ["canary-0"]
    cluster.write("canary-0", MISSING.format("A"), 30)
    reading = await cluster.read(tmp_path)
    assert isinstance(reading.counts, LineCounts)
    assert reading.counts.only_on_canary() == (0,)
    assert len(heard.pods) < 18, "all of stable was read, although one pod says enough"


async def test_of_very_many_pods_some_are_read_and_that_is_said(cluster: Cluster, tmp_path: Path) -> None:
    for n in range(pod_logs.MAX_PODS):
        cluster.pod(f"canary-{n:02}", "v2")
    reading = await cluster.read(tmp_path)
    assert reading.availability is Availability.DEGRADED
    assert "only 20 of its pods were read" in reading.detail


async def test_bytes_that_are_no_text_and_hostile_lines_are_counted_around(cluster: Cluster, tmp_path: Path) -> None:
    cluster.write("canary-0", "\x00\u2028\x1b]0;x\x07" + "'" * 5000, 30)
    cluster.write("canary-0", MISSING.format("A"), 30)
    reading = await cluster.read(tmp_path)
    assert reading.counts == LineCounts(("missing-opkernel A",), (1,), (0,), (0,))
    assert reading.detail.isprintable()


async def test_labels_that_no_pod_can_have_are_not_asked(cluster: Cluster, tmp_path: Path) -> None:
    reading = await cluster.read(tmp_path, stable_log_labels={"version": "v1,x=y"}, canary_log_labels={"version": "v2"})
    assert (reading.availability, reading.counts) == (Availability.NO_SERIES, None)
    assert "no label of a pod" in reading.detail
