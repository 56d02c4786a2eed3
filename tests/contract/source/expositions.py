"""What real exporters print, in their own form, for the presets' tests that need no real ones.

The text is written here; its form is taken from the source of each exporter, which its function names. Servers in
Python print by prometheus_client, and so does this. The real tests read KServe and Triton themselves
(tests/real/test_presets.py) and a kubelet (test_kubelet.py), and hold the imitations of kube-state-metrics, KServe and
Knative's queue proxies to what those print (test_exporters.py, test_queue_proxy.py); ``recorded`` is what a vLLM
printed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families


@dataclass(slots=True)
class Served:
    """What one pod has served since it began; every answered request took the same time."""

    answered: int = 0
    failed: int = 0
    took_s: float = 0.02


def tensorflow_serving(pod: Served) -> str:
    """tensorflow_serving/util/prometheus_exporter.cc and servables/tensorflow/util.cc of TensorFlow Serving 2.x.

    No HELP lines, labels in the order of their declaration, bounds of doubles with six digits. A request that fails
    has no latency.
    """
    lines = ["# TYPE :tensorflow:serving:request_count counter"]
    for status, n in (("OK", pod.answered), ("INVALID_ARGUMENT", pod.failed)):
        if n:
            lines.append(f':tensorflow:serving:request_count{{model_name="ranker",status="{status}"}} {n}')
    name, labels = ":tensorflow:serving:request_latency", 'model_name="ranker",API="predict",entrypoint="REST"'
    bounds = [10 * 1.8**k for k in range(33)]
    took_us = pod.took_s * 1e6
    lines.append(f"# TYPE {name} histogram")
    lines += [f'{name}_bucket{{{labels},le="{b:g}"}} {pod.answered if took_us <= b else 0}' for b in bounds]
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {pod.answered}')
    lines.append(f"{name}_sum{{{labels}}} {pod.answered * took_us:g}")
    lines.append(f"{name}_count{{{labels}}} {pod.answered}")
    return "\n".join(lines) + "\n"


def triton(pod: Served) -> str:
    """src/metrics.cc and metric_model_reporter.cc of Triton's core, printed by prometheus-cpp: count and sum before
    the buckets, labels by name. Of a decoupled model, with --metrics-config histogram_latencies=true: others have no
    histogram."""
    model = 'model="ranker",version="1"'
    total_us = round(pod.answered * pod.took_s * 1e6)
    lines = [
        "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes",
        "# TYPE nv_inference_request_success counter",
        f"nv_inference_request_success{{{model}}} {pod.answered}",
        "# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes",
        "# TYPE nv_inference_request_failure counter",
    ]
    for reason, n in (("OTHER", 0), ("BACKEND", pod.failed), ("CANCELED", 7), ("REJECTED", 0)):
        lines.append(f'nv_inference_request_failure{{model="ranker",reason="{reason}",version="1"}} {n}')
    lines += [
        "# HELP nv_inference_request_duration_us Cumulative inference request duration in microseconds",
        "# TYPE nv_inference_request_duration_us counter",
        f"nv_inference_request_duration_us{{{model}}} {total_us}",
        "# HELP nv_inference_pending_request_count Instantaneous number of pending requests per-model",
        "# TYPE nv_inference_pending_request_count gauge",
        f"nv_inference_pending_request_count{{{model}}} 3",
        "# HELP nv_inference_first_response_histogram_ms Duration from request to first response in milliseconds",
        "# TYPE nv_inference_first_response_histogram_ms histogram",
        f"nv_inference_first_response_histogram_ms_count{{{model}}} {pod.answered}",
        f"nv_inference_first_response_histogram_ms_sum{{{model}}} {total_us / 1000:g}",
    ]
    for bound in ("100", "500", "2000", "5000", "+Inf"):
        n = pod.answered if 1000 * pod.took_s <= float(bound) else 0
        lines.append(f'nv_inference_first_response_histogram_ms_bucket{{{model},le="{bound}"}} {n}')
    return "\n".join(lines) + "\n"


def kserve(pod: Served) -> str:
    """python/kserve/kserve/metrics.py of KServe, and the counter of the queue proxy of Knative Serving 1.18 (its
    pkg/queue/request_metric.go); together, as the aggregation of metrics gives them."""
    labels = (
        'configuration_name="ranker-predictor",container_name="queue-proxy",namespace_name="ml-serving",'
        'pod_name="ranker-0",response_code="{}",response_code_class="{}xx",revision_name="{}",service_name="ranker"'
    )
    lines = [
        "# HELP revision_app_request_count The number of requests that are routed to user-container",
        "# TYPE revision_app_request_count counter",
    ]
    for code, n in (("200", pod.answered), ("503", pod.failed)):
        if n:
            # Of Go's client; the revision's name is put in by who knows the arm.
            said = labels.format(code, code[0], "REVISION")
            lines.append(f"revision_app_request_count{{{said}}} {n}")
    return generate_latest(_predicted(pod)).decode() + "\n".join(lines) + "\n"


def _predicted(pod: Served) -> CollectorRegistry:
    """What the model server itself counts."""
    registry = CollectorRegistry()
    predict = Histogram("request_predict_seconds", "predict request latency", ["model_name"], registry=registry).labels(
        model_name="ranker"
    )
    for _ in range(pod.answered):
        predict.observe(pod.took_s)
    return registry


def kserve_otel(pod: Served) -> str:
    """The same with the queue proxy of Knative Serving 1.21 and newer: one histogram by OpenTelemetry, whose series
    do not name the revision."""
    name, scope = "kn_serving_invocation_duration_seconds", 'otel_scope_name="knative.dev/serving/pkg/queue"'
    lines = [f"# HELP {name} The duration of task execution", f"# TYPE {name} histogram"]
    bounds = ("0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5", "10")
    for code, n in (("200", pod.answered), ("503", pod.failed)):
        if n:
            labels = f'http_response_status_code="{code}",{scope},otel_scope_schema_url="",otel_scope_version=""'
            for bound in (*bounds, "+Inf"):
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {n if pod.took_s <= float(bound) else 0}')
            lines += [f"{name}_sum{{{labels}}} {n * pod.took_s}", f"{name}_count{{{labels}}} {n}"]
    return generate_latest(_predicted(pod)).decode() + "\n".join(lines) + "\n"


def vllm(pod: Served) -> str:
    """What vLLM 0.32 prints; ``test_recorded`` holds it to a real one."""
    registry = CollectorRegistry()
    engine = {"model_name": "org/model", "engine": "0"}
    names = list(engine)
    first = Histogram(
        "vllm:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        names,
        buckets=(
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
            80.0, 160.0, 640.0, 2560.0,
        ),
        registry=registry,
    ).labels(**engine)  # fmt: skip
    for _ in range(pod.answered):
        first.observe(pod.took_s)
    success = Counter(
        "vllm:request_success",
        "Count of successfully processed requests.",
        [*names, "finished_reason"],
        registry=registry,
    )
    for reason, share in (("stop", 4), ("length", 1), ("abort", 0), ("error", 0), ("repetition", 0)):
        success.labels(**engine, finished_reason=reason).inc(pod.answered * share // 5)
    Gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", names, registry=registry).labels(
        **engine
    ).set(2)
    Gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", names, registry=registry).labels(
        **engine
    ).set(0.25)
    requests = Counter(
        "http_requests_total", "Total number of requests by method, status and handler.",
        ["method", "status", "handler"], registry=registry,
    )  # fmt: skip
    for status, n in (("2xx", pod.answered), ("4xx", 3), ("5xx", pod.failed)):
        requests.labels(method="POST", status=status, handler="/v1/completions").inc(n)
    return generate_latest(registry).decode()


@dataclass(slots=True)
class Used:
    """What one pod used, as three exporters tell it."""

    version: str
    cpu_s: float = 100.0
    periods: int = 1000
    throttled: int = 100
    limited: bool = True
    """Its container has a limit of CPU and of memory (4 GiB)."""
    memory_bytes: int = 3 << 30
    restarts: int = 0
    gpu_percent: int = 40
    gpu_used_mib: int = 6000
    gpu_free_mib: int = 9000
    gpu_reserved_mib: int = 447


def cadvisor(pods: Mapping[str, Used], at_ms: int) -> str:
    """metrics/prometheus.go of cAdvisor as the kubelet serves it: labels by name, and each measurement with its moment,
    which what a container may use has not. tests/real/test_kubelet.py holds this to what the kubelet's own code prints.

    Beside every container there are its pod's sandbox and the pod itself, what holds all pods, and the node, without a
    container's name. Periods are counted where there is a CPU limit; a memory limit that is not set is 0.
    """
    families = {
        "container_cpu_cfs_periods_total": ("counter", "Number of elapsed enforcement period intervals."),
        "container_cpu_cfs_throttled_periods_total": ("counter", "Number of throttled period intervals."),
        "container_cpu_usage_seconds_total": ("counter", "Cumulative cpu time consumed in seconds."),
        "container_memory_working_set_bytes": ("gauge", "Current working set in bytes."),
        "container_oom_events_total": ("counter", "Count of out of memory events observed for the container"),
        "container_spec_memory_limit_bytes": ("gauge", "Memory limit for the container."),
    }
    node = Used("", cpu_s=75712.838005203, memory_bytes=4712173568)
    cgroups: list[tuple[dict[str, str], Used, int]] = [({"id": "/"}, replace(node, limited=False), 25276514304)]
    cgroups += [({"id": name}, replace(node, limited=False), 0) for name in ("/kubepods", "/kubepods/burstable")]
    for pod, used in pods.items():
        of_pod = {"id": f"/kubepods/burstable/poduid-{pod}", "namespace": "ml-serving", "pod": pod}
        sandbox = Used("", cpu_s=0.028428637, limited=False, memory_bytes=61440)
        limit = 4 << 30 if used.limited else 0
        cgroups.append((of_pod, used, limit))
        for container, image, what, least in (
            ("", "registry.k8s.io/pause:3.10.1", sandbox, 0),
            ("serving", "docker.io/library/serving:1", used, limit),
        ):
            name = hashlib.sha256(f"{pod}/{container}".encode()).hexdigest()
            told = {"container": container, "id": f"{of_pod['id']}/{name}", "image": image, "name": name}
            cgroups.append(({**of_pod, **told}, what, least))
    lines = []
    for family, (kind, told_of_it) in families.items():
        lines += [f"# HELP {family} {told_of_it}", f"# TYPE {family} {kind}"]
        for labels, used, limit in cgroups:
            value, moment = {
                "container_cpu_cfs_periods_total": (used.periods if used.limited else None, f" {at_ms}"),
                "container_cpu_cfs_throttled_periods_total": (used.throttled if used.limited else None, f" {at_ms}"),
                "container_cpu_usage_seconds_total": (used.cpu_s, f" {at_ms}"),
                "container_memory_working_set_bytes": (used.memory_bytes, f" {at_ms}"),
                "container_oom_events_total": (0, f" {at_ms}"),
                "container_spec_memory_limit_bytes": (limit, ""),
            }[family]
            if value is None:
                continue
            cpu = {"cpu": "total"} if family == "container_cpu_usage_seconds_total" else {}
            empty = dict.fromkeys(("container", "id", "image", "name", "namespace", "pod"), "")
            listed = ",".join(f'{name}="{text}"' for name, text in sorted({**empty, **labels, **cpu}.items()))
            lines.append(f"{family}{{{listed}}} {go_float(value)}{moment}")
    return "\n".join(lines) + "\n"


def go_float(value: float) -> str:
    """As Go's client prints a number: the fewest digits that tell it, and an exponent from a million on."""
    text = repr(float(value))
    digits = len(text.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0"))
    short = f"{value:.{max(digits - 1, 0)}e}"
    return short if value and not -5 < math.floor(math.log10(abs(value))) < 6 else text.removesuffix(".0")


def kube_state_metrics(pods: Mapping[str, Used], started_s: float, *, allowed: bool = True) -> str:
    """internal/store/pod.go of kube-state-metrics 2.x: labels in the order of its code, uid behind the pod.

    allowed : started with --metric-labels-allowlist=pods=[version]; without, it has no series of kube_pod_labels
    """
    families = (
        (
            "kube_pod_container_status_restarts_total",
            "counter",
            "[STABLE] The number of container restarts per container.",
        ),
        ("kube_pod_labels", "gauge", "[STABLE] Kubernetes labels converted to Prometheus labels."),
        ("kube_pod_start_time", "gauge", "[STABLE] Start time in unix timestamp for a pod."),
        ("kube_pod_status_ready", "gauge", "[STABLE] Describes whether the pod is ready to serve requests."),
    )
    lines = []
    for name, kind, told in families:
        lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
        if name == "kube_pod_labels" and not allowed:
            continue
        for pod, used in pods.items():
            labels = f'namespace="ml-serving",pod="{pod}",uid="u-{pod}"'
            lines += {
                "kube_pod_labels": [f'{name}{{{labels},label_version="{used.version}"}} 1'],
                "kube_pod_start_time": [f"{name}{{{labels}}} {go_float(round(started_s))}"],
                "kube_pod_container_status_restarts_total": [f'{name}{{{labels},container="serving"}} {used.restarts}'],
                "kube_pod_status_ready": [
                    f'{name}{{{labels},condition="{condition}"}} {n}'
                    for condition, n in (("true", 1), ("false", 0), ("unknown", 0))
                ],
            }[name]
    return "\n".join(lines) + "\n"


def dcgm(pods: Mapping[str, Used]) -> str:
    """internal/pkg/rendermetrics/render_metrics.go of NVIDIA's DCGM exporter 4.x, with etc/default-counters.csv.

    Labels of the GPU, of the driver and of the pod, in this order; ``hostname`` was ``Hostname`` before May 2026.
    Another GPU of the node belongs to no pod. What a driver does not support is left out (collector/gpu_collector.go).
    """
    lines = []
    for name, told, what, idle in (
        ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", "gpu_percent", 0),
        ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", "gpu_free_mib", 15_000),
        ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", "gpu_used_mib", 0),
        ("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", "gpu_reserved_mib", 447),
    ):
        lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        for gpu, (pod, used) in enumerate([*pods.items(), ("", None)]):
            labels = (
                f'gpu="{gpu}",UUID="GPU-{gpu}",pci_bus_id="00000000:0{gpu}:00.0",device="nvidia{gpu}",'
                'modelName="Tesla T4",hostname="node-1",DCGM_FI_DRIVER_VERSION="580.65.06"'
            )
            if used is not None:
                labels += f',container="serving",namespace="ml-serving",pod="{pod}"'
            lines.append(f"{name}{{{labels}}} {getattr(used, what) if used else idle}")
    return "\n".join(lines) + "\n"


def form(text: str) -> dict[str, tuple[str, ...]]:
    """What an exposition looks like, whatever it counts, by family: its HELP and TYPE, then each kind of sample that it
    has, with its labels' names in their order and its value with every number written as 0."""
    out: dict[str, list[str]] = {}
    family: list[str] = []
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, told = line.split(" ", 3)
            family = out.setdefault(name, [])
            kept = f"{kind} {told}"
        else:
            series, value = line.rsplit(" ", 1)
            labels = re.findall(r'(\w+)="(?:[^"\\]|\\.)*"', series)
            kept = f"{series.partition('{')[0]}{{{','.join(labels)}}} {re.sub(r'[0-9]+', '0', value)}"
        if kept not in family:
            family.append(kept)
    return {name: tuple(kinds) for name, kinds in out.items()}


def forms(imitated: str, real: str) -> tuple[Any, Any]:
    """The forms of both in their order, without the families that only the real one has: equal for an imitation."""
    ours, theirs = form(imitated), form(real)
    return list(ours.items()), [(name, kinds) for name, kinds in theirs.items() if name in ours]


def samples(text: str, more: Mapping[str, str]) -> Sequence[tuple[str, Mapping[str, str], float]]:
    """The series of an exposition as a scrape keeps them: labels that the scrape adds take the place of the same."""
    # The parser ends every counter's name on _total, as OpenMetrics does; Prometheus keeps what is printed.
    counters = set(re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE))
    out = []
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            bare = one.name.removesuffix("_total")
            kept = {(f"exported_{k}" if k in more else k): v for k, v in one.labels.items()}
            out.append((bare if bare in counters else one.name, {**kept, **more}, float(one.value)))
    return out
