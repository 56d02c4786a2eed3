"""Prediction records a second on one core: from the topic to counts and offsets on the disk.

`python -m tests.benchmarks.prediction_records` puts records on the embedded broker's topic and lets a consumer in a
process of its own count them all into SQLite (synchronous FULL); the rate is records a second of that process's CPU
time, so that what else runs on the machine does not tell. Records carry a class of a thousand and a score, as a
classifier's do; `--kind` gives other ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from service.app.clock import SystemClock
from service.events.connection import Connection
from service.lab.broker import EmbeddedBroker
from service.predictions.consumer import PredictionConsumer
from service.predictions.counting import Counting
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions

TOPIC = "predictions"
PARTITIONS = 16
KINDS = ("class-and-score", "class", "scores", "embedding")
SPREAD_S = 60.0
"""Records' times lie within so many seconds before now."""


def bodies(kind: str, records_n: int, services_n: int) -> list[bytes]:
    """Records of many services, a tenth of the canary's, in order of their time."""
    chance = np.random.default_rng(1)
    now_s = time.time()
    shares = 1.0 / np.arange(1, 1001)
    classes = chance.choice(1000, records_n, p=shares / shares.sum())
    scores = chance.beta(8, 2, records_n)
    out = []
    for n in range(records_n):
        said: dict[str, object] = {"class": f"class-{classes[n]}"}
        if kind == "class-and-score":
            said["score"] = round(float(scores[n]), 6)
        elif kind == "scores":
            said = {
                "scores": {f"class-{(classes[n] + i) % 1000}": round(float(scores[n]) / 2**i, 6) for i in range(10)}
            }
        elif kind == "embedding":
            said = {"embedding": [round(float(x), 4) for x in chance.normal(size=64)]}
        body = {
            "service": f"model-{n % services_n}", "namespace": "ml-serving", "model": "classifier",
            "version": "v2" if n % 10 == 0 else "v1", "request_id": f"{n:016x}",
            "time": round(now_s - SPREAD_S * (1 - n / records_n), 3), **said,
        }  # fmt: skip
        out.append(json.dumps(body).encode())
    return out


def fill(bootstrap: str, records: list[bytes]) -> None:
    """Put them on the topic; packed, because the embedded broker keeps 5 MiB a partition."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "compression.type": "zstd"})
    for n, record in enumerate(records):
        while True:
            try:
                producer.produce(TOPIC, value=record, partition=n % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.05)
    if producer.flush(60):
        raise RuntimeError("the broker did not take all records")


async def consume(bootstrap: str, records_n: int, folder: Path) -> None:
    """Count all of it, and print what it took as JSON."""
    opened = await open_store(f"sqlite:///{folder / 's.db'}")
    store, stopping, clock = SqlPredictions(opened), Stopping(), SystemClock()
    consumer = PredictionConsumer(
        Connection(bootstrap).arguments(),
        topic=TOPIC, group="bench", store=store, clock=clock, stopping=stopping,
        counting=Counting(store, clock, topic=TOPIC, cluster="default", lateness_s=2 * SPREAD_S),
    )  # fmt: skip
    cpu_s, began_s = time.process_time(), time.monotonic()
    task = asyncio.create_task(consumer.run())
    while sum(part.next_offset for part in consumer._parts.values()) < records_n:
        await asyncio.sleep(0.05)
    stopping.ask()
    await task
    took = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.monotonic() - began_s}
    counted_n = sum(one.counted_n for one in await store.partitions(TOPIC))
    await opened.close()
    size = (folder / "s.db").stat().st_size
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**took, "counted_n": counted_n, "bytes": size, "peak_mib": peak_mib}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prediction_records", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--child", nargs=2, metavar=("BOOTSTRAP", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asyncio.run(consume(given.child[0], given.records, Path(given.child[1])))
        return
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as folder:
        broker.create_topic(TOPIC, PARTITIONS)
        records = bodies(given.kind, given.records, given.services)
        mean = sum(map(len, records)) / len(records)
        fill(broker.bootstrap, records)
        command = [sys.executable, "-m", "tests.benchmarks.prediction_records", "--records", str(given.records)]
        child = subprocess.run(
            [*command, "--child", broker.bootstrap, folder], check=True, capture_output=True, text=True, timeout=300
        )
        said = json.loads(child.stdout.strip().splitlines()[-1])
    if said["counted_n"] != given.records:
        raise SystemExit(f"{said['counted_n']} of {given.records} records were counted")
    print(
        f"{given.kind}, {given.records:,} records of {mean:.0f} bytes, {given.services} services: "
        f"{given.records / said['cpu_s']:,.0f} records a second of CPU time ({1e6 * said['cpu_s'] / given.records:.1f} "
        f"us each; {given.records / said['wall_s']:,.0f} a second by the clock), peak {said['peak_mib']:.0f} MiB, "
        f"database {said['bytes'] / given.records:.1f} bytes a record; every record counted once"
    )


if __name__ == "__main__":
    main()
