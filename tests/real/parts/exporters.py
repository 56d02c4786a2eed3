"""Exporters of a cluster, from their own modules: kube-state-metrics, and the queue proxy of Knative Serving."""

from __future__ import annotations

from pathlib import Path

from tests.processes import free_port
from tests.real.parts.building import exporter
from tests.real.parts.serving import HttpServer

KNATIVE = ("1.18", "1.23")
"""Versions of Knative Serving: the last whose queue proxy counts by OpenCensus, and one that does by OpenTelemetry.
Their modules have the minor version plus 27: v0.45.0, v0.50.0."""


def kube_state_metrics() -> Path:
    """The program."""
    return exporter("kube-state-metrics")


def queue_proxy(version: str) -> Path:
    """The program of one of ``KNATIVE``."""
    return exporter(f"queue-proxy-{version}")


class KubeStateMetrics(HttpServer):
    """Tells of the pods of an API server."""

    def __init__(self, folder: Path, kubeconfig: str, *arguments: str) -> None:
        port = free_port()
        super().__init__(
            (
                str(kube_state_metrics()), f"--kubeconfig={kubeconfig}", "--resources=pods",
                "--host=127.0.0.1", f"--port={port}", "--telemetry-host=127.0.0.1", f"--telemetry-port={free_port()}",
                *arguments,
            ),
            port=port,
            ready="/metrics",
            folder=folder,
        )  # fmt: skip


class QueueProxy(HttpServer):
    """Stands before a server as in a pod of Knative.

    It takes two ports that cannot be moved (8022, 9090; version 1.18 a third, 9091), so one runs at a time.
    """

    METRICS_PORT = 9091

    def __init__(self, folder: Path, version: str, user: HttpServer, *, revision: str, ready: str) -> None:
        """``user`` is what it stands before, which answers ``ready`` with 200; those requests are counted, too."""
        port = free_port()
        metrics = f"127.0.0.1:{self.METRICS_PORT}"
        super().__init__(
            (str(queue_proxy(version)),),
            port=port,
            ready=ready,
            folder=folder,
            environment={
                "CONTAINER_CONCURRENCY": "0",
                "QUEUE_SERVING_PORT": str(port),
                "QUEUE_SERVING_TLS_PORT": str(free_port()),
                "USER_PORT": user.url.rpartition(":")[2],
                "REVISION_TIMEOUT_SECONDS": "300",
                "SERVING_LOGGING_CONFIG": "",
                "SERVING_LOGGING_LEVEL": "info",
                "SERVING_NAMESPACE": "ml-serving",
                "SERVING_SERVICE": "ranker",
                "SERVING_CONFIGURATION": "ranker-predictor",
                "SERVING_REVISION": revision,
                "SERVING_POD": f"{revision}-0",
                "SERVING_POD_IP": "127.0.0.1",
                "POD_NAME": f"{revision}-0",
                # What config-observability says reaches 1.18 in these two, and later ones as one document.
                "SERVING_REQUEST_METRICS_BACKEND": "prometheus",
                "METRICS_PROMETHEUS_HOST": "127.0.0.1",
                "OBSERVABILITY_CONFIG": f'{{"requestMetrics": {{"protocol": "prometheus", "endpoint": "{metrics}"}}}}',
            },
        )

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.METRICS_PORT}"

    def stop(self) -> None:
        """Kill it: asked to end, it goes on for half a minute, for the cluster to notice."""
        if self._process is not None:
            self._process.kill()
        super().stop()
