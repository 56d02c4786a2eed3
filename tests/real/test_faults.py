"""Faults that only real parts have: a reply that is lost after the write, and brokers that ask who we are."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
from kubernetes.aio import client
from pydantic import SecretStr

from service.actuators.istio import IstioMesh
from service.cluster import connect
from service.events.connection import Connection
from service.events.publisher import Producer
from service.ring.ports import Unavailable
from tests.contract.mesh.test_mesh import World
from tests.real.parts import building
from tests.real.parts.cut_proxy import CutProxy
from tests.real.parts.kafka import KafkaBroker
from tests.real.parts.kube import KubeApiServer
from tests.real.rig import prepare_cluster

pytestmark = [
    pytest.mark.real,
    # Connections that a proxy or a broker cut are left to the garbage collector by the clients.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


async def test_a_write_whose_reply_was_lost_is_found_done_and_not_done_twice(tmp_path: Path) -> None:
    with KubeApiServer(building.apiserver(), tmp_path, fsync=False) as kube:
        admin = await connect(Path(kube.kubeconfig))
        await prepare_cluster(admin)
        world = World(admin, None)
        where = await world.route()
        proxy = CutProxy(kube.port)
        through = json.loads(Path(kube.kubeconfig).read_text())
        through["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
        (tmp_path / "through").write_text(json.dumps(through))
        api = await connect(tmp_path / "through")
        mesh = IstioMesh(api)
        await mesh.get_weights([where])
        patched = client.CustomObjectsApi.patch_namespaced_custom_object

        async def cut_after_the_write(self: object, *given: object, **named: object) -> object:
            proxy.cut_limit, proxy.mode = proxy.cuts + 1, "cut"
            return await patched(self, *given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client.CustomObjectsApi, "patch_namespaced_custom_object", cut_after_the_write)
            with pytest.raises(Unavailable):
                await mesh.set_weights(where, canary_percent=10, fence=5, rollout="r-1")
        assert proxy.cuts == 1
        version = (await world.read(where))["metadata"]["resourceVersion"]
        again = await mesh.set_weights(where, canary_percent=10, fence=5, rollout="r-1")
        assert (again.canary_percent, again.changed) == (10, False)
        assert (await world.read(where))["metadata"]["resourceVersion"] == version
        await api.close()
        await admin.close()
        proxy.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """(what clients trust, what the broker serves), self-signed for localhost."""
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(key.read_text() + cert.read_text())
    return cert, both


async def try_out(connection: Connection) -> None:
    producer = Producer(connection)
    try:
        await producer.send("t", key=None, value=b"x", headers=[])
    finally:
        with contextlib.suppress(Exception):
            await producer.stop()


async def test_sasl_and_tls_let_us_in_with_the_right_credentials_and_only_then(tmp_path: Path) -> None:
    trust, served = certificate(tmp_path)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule"
    listener = "listener.name.sasls"
    with KafkaBroker(
        building.kafka_jars(),
        tmp_path / "kafka",
        extra_listeners={"SASLS": "SASL_SSL"},
        props={
            "auto.create.topics.enable": "true",
            f"{listener}.sasl.enabled.mechanisms": "PLAIN",
            f"{listener}.plain.sasl.jaas.config": f'{login} required user_serinus="right-password";',
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(served),
        },
    ) as broker:

        def who(password: str, ca_file: Path | None) -> Connection:
            return Connection(
                broker.listener("SASLS"),
                security_protocol="SASL_SSL",
                sasl_mechanism="PLAIN",
                username="serinus",
                password=SecretStr(password),
                ca_file=ca_file,
            )

        await try_out(who("right-password", trust))
        with pytest.raises(Unavailable) as raised:
            await try_out(who("wrong-password", trust))
        assert "wrong-password" not in str(raised.value)
        with pytest.raises(Unavailable):
            await try_out(who("right-password", None))
        assert "right-password" not in repr(who("right-password", trust))
