"""A real Prometheus that scrapes what a test serves, every second."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import yaml

from tests.processes import answers, end

READY_WITHIN_S = 60.0


class PrometheusServer:
    """Start, stop and start again on the same port and data."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        targets: dict[str, str],
        *,
        scrape_interval: str = "1s",
        honor_labels: bool = True,
        arguments: tuple[str, ...] = (),
    ) -> None:
        """``targets`` are addresses by job; ``arguments`` go to the program as they are.

        honor_labels : what is scraped may name its own job and instance
        """
        self._binary = binary
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        config = {
            "global": {"scrape_interval": scrape_interval},
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": honor_labels,
                    "file_sd_configs": [{"files": [str(self._targets_file(job))]}],
                }
                for job in targets
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for job, address in targets.items():
            self.aim(job, address)

    def aim(self, scraped_as: str, *addresses: str, **labels: str) -> None:
        """Scrape these addresses for one of the jobs from now on; a running Prometheus notices within seconds.

        labels : put on all that is scraped there, as relabelling would; ``__metrics_path__`` is the path
        """
        file = self._targets_file(scraped_as)
        part = file.with_suffix(".part")
        part.write_text(json.dumps([{"targets": list(addresses), "labels": labels}]))
        part.rename(file)

    def _targets_file(self, job: str) -> Path:
        return self._folder / f"targets-{job}.json"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> PrometheusServer:
        """Start and wait until it is ready; raises RuntimeError with its last log lines when it is not."""
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._binary),
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if answers(f"{self.url}/-/ready", self._process, READY_WITHIN_S):
            return self
        self.stop()
        raise RuntimeError(f"{self._binary} is not ready:\n{(self._folder / 'prometheus.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it; the data is kept."""
        process, self._process = self._process, None
        if process is not None:
            end(process)

    def pause(self) -> None:
        """SIGSTOP: questions are taken by the kernel and not answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> PrometheusServer:
        """Stop and start on the same port and data."""
        self.stop()
        return self.start()
