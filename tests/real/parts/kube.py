"""Start, stop, kill and restart a real kube-apiserver (+ etcd) for tests. Standard library only.

    with KubeApiServer("/path/to/testapiserver", workdir) as k:
        kubernetes.config.load_kube_config(k.kubeconfig)

etcd and the API server are two processes of one binary, so either can be killed alone; all state
is kept under workdir, so start() after kill() continues with the same objects and port.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.processes import free_port, rss_mib


class KubeApiServer:
    def __init__(self, binary, workdir, *, extra_args=(), fsync=True):
        self.binary = str(Path(binary).resolve())
        self.dir = Path(workdir).resolve()
        self.extra_args = list(extra_args)
        self.fsync = fsync
        self.port = free_port()
        self.etcd_port = free_port()
        self.etcd_peer_port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.kubeconfig = str(self.dir / "kubeconfig")
        self.ca = str(self.dir / "tls.crt")
        self.tokens: dict[str, str] = {}
        self.etcd: subprocess.Popen | None = None
        self.api: subprocess.Popen | None = None
        self.start_seconds: dict[str, float] = {}

    # -- life cycle ---------------------------------------------------------
    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc):
        self.stop()

    def start(self, timeout=120.0):
        self._prepare()
        self.start_etcd()
        self.start_api(timeout)
        return self

    def start_etcd(self, timeout=60.0):
        t0 = time.monotonic()
        args = [
            "etcd",
            f"--data-dir={self.dir}/etcd",
            f"--listen-client-url=http://127.0.0.1:{self.etcd_port}",
            f"--listen-peer-url=http://127.0.0.1:{self.etcd_peer_port}",
        ]
        if not self.fsync:
            args.append("--unsafe-no-fsync")
        self.etcd = self._spawn("etcd", args)
        self._wait(
            lambda: self._get(f"http://127.0.0.1:{self.etcd_port}/health", None) == 200, self.etcd, "etcd", timeout
        )
        self.start_seconds["etcd"] = time.monotonic() - t0

    def start_api(self, timeout=120.0, wait=True):
        t0 = time.monotonic()
        d = self.dir
        args = [
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={d}/tls.crt",
            f"--tls-private-key-file={d}/tls.key",
            f"--cert-dir={d}",
            f"--token-auth-file={d}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={d}/sa.key",
            f"--service-account-signing-key-file={d}/sa.key",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--profiling=false",
            *self.extra_args,
        ]
        self.api = self._spawn("kube-apiserver", args)
        if wait:
            self.wait_ready(timeout)
            self.start_seconds["api"] = time.monotonic() - t0

    def wait_ready(self, timeout=120.0):
        self._wait(
            lambda: self._get(f"{self.url}/readyz", self.tokens["admin"]) == 200, self.api, "kube-apiserver", timeout
        )

    def kill_api(self):
        """SIGKILL: what an out-of-memory kill or a node loss looks like."""
        self.api.kill()
        self.api.wait()
        self.api.stdin.close()

    def restart_api(self, timeout=120.0):
        if self.api.poll() is None:
            self.kill_api()
        self.start_api(timeout)

    def pause_api(self):
        """SIGSTOP: connections are accepted by the kernel but nothing answers."""
        self.api.send_signal(signal.SIGSTOP)
        # the signal only starts the stop: without this wait a request sent at once can still be served
        tasks = Path(f"/proc/{self.api.pid}/task")
        while not all(") T " in (t / "stat").read_text() for t in tasks.iterdir()):
            time.sleep(0.005)

    def resume_api(self):
        self.api.send_signal(signal.SIGCONT)

    def stop(self):
        for p in (self.api, self.etcd):
            if p is None or p.poll() is not None:
                continue
            p.send_signal(signal.SIGCONT)
            p.terminate()
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
            p.stdin.close()

    def rss_mib(self) -> dict[str, int]:
        out = {}
        for name in ("etcd", "api"):
            p = getattr(self, name)
            if p is not None and p.poll() is None:
                out[name] = int(rss_mib(p.pid))
        return out

    def kubeconfig_for(self, token: str, name: str) -> str:
        path = self.dir / f"kubeconfig-{name}"
        self._write_kubeconfig(path, token)
        return str(path)

    # -- inside -------------------------------------------------------------
    def _prepare(self):
        self.dir.mkdir(parents=True, exist_ok=True)
        tok = self.dir / "tokens.csv"
        if not tok.exists():
            subprocess.run([self.binary, "init", f"--dir={self.dir}"], check=True)
            tok.write_text(f'{secrets.token_hex(16)},admin,admin,"system:masters"\n')
            tok.chmod(0o600)
        for line in tok.read_text().splitlines():
            f = line.split(",")
            self.tokens[f[1]] = f[0]
        self._write_kubeconfig(Path(self.kubeconfig), self.tokens["admin"])

    def _write_kubeconfig(self, path: Path, token: str):
        path.write_text(
            json.dumps(
                {  # JSON is YAML
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "t",
                    "clusters": [{"name": "t", "cluster": {"server": self.url, "certificate-authority": self.ca}}],
                    "users": [{"name": "t", "user": {"token": token}}],
                    "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
                },
                indent=1,
            )
        )
        path.chmod(0o600)

    def _spawn(self, name, args):
        with open(self.dir / f"{name}.log", "ab") as log:
            # the server ends when this pipe closes, so a killed test run leaves no orphan
            return subprocess.Popen(
                [self.binary, *args],
                cwd=self.dir,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "TESTAPISERVER_EXIT_WITH_STDIN": "1"},
            )

    def _get(self, url, token):
        req = urllib.request.Request(url)
        ctx = None
        if token:
            req.add_header("Authorization", f"Bearer {token}")
            ctx = ssl.create_default_context(cafile=self.ca)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=ctx)] if ctx else [])
        )
        try:
            with opener.open(req, timeout=2) as r:
                return r.status
        except urllib.error.HTTPError as e:
            return e.code
        except OSError:
            return None

    def _wait(self, ok, proc, name, timeout):
        end = time.monotonic() + timeout
        while not ok():
            if proc.poll() is not None or time.monotonic() > end:
                tail = (self.dir / f"{name}.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{name} not ready (exit {proc.poll()}):\n{tail}")
            time.sleep(0.1)
