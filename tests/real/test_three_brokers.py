"""Three real brokers, three copies of everything, two needed for a write: the leaders of the events' partitions and the
group's coordinator are killed while events come and decisions go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.real.load import Deployer, audited, under_load
from tests.real.parts.kafka import KafkaBroker
from tests.real.rig import Rig, rig

pytestmark = [
    pytest.mark.real,
    # When a broker is killed, the Kafka client leaves its transports to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


async def leader(real: Rig) -> KafkaBroker:
    """The broker that leads most partitions of the events, and at least one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=real.bootstrap)
    await admin.start()
    (topic,) = await admin.describe_topics(["cd.events"])
    await admin.close()
    led = Counter(partition["leader"] for partition in topic["partitions"])
    return _node(real, led.most_common(1)[0][0])


async def coordinator(real: Rig) -> KafkaBroker:
    """The broker that keeps the consumer group."""
    admin = AIOKafkaAdminClient(bootstrap_servers=real.bootstrap)
    await admin.start()
    node = await admin.find_coordinator("serinus")
    await admin.close()
    return _node(real, node)


def _node(real: Rig, node_id: int) -> KafkaBroker:
    return next(broker for broker in real.brokers if broker.node_id == node_id)


async def goes_on(real: Rig, deployer: Deployer, within_s: float = 60.0) -> float:
    """Until three releases that are announced from now on have ended; seconds until the first decision on one."""
    began, sent_n = time.monotonic(), len(real.sent)
    first_s = 0.0
    while True:
        new = {one.version for one in real.sent[sent_n:] if one.version}
        heard = [one for one in real.published if one.version in new]
        if heard and not first_s:
            first_s = heard[0].at_s - began
        if len({one.version for one in heard if one.phase in ("promoted", "rolled_back", "ended")}) >= 3:
            return first_s
        assert time.monotonic() < began + within_s, f"nothing goes on: {deployer.counts}\n{real.log_tail()}"
        await asyncio.sleep(0.2)


async def test_leaders_and_the_coordinator_are_killed_and_no_event_or_decision_is_lost(tmp_path: Path) -> None:
    async with rig(tmp_path, brokers_n=3) as real:
        replica = under_load(real)
        deployer = Deployer(real, seed=11)
        await deployer.begin(16)
        assert real.session is not None
        await replica.start(real.session)
        await goes_on(real, deployer)
        for what, find in (("leader", leader), ("coordinator", coordinator)):
            broker = await find(real)
            broker.kill()
            first_s = await goes_on(real, deployer)
            print(f"{what} (node {broker.node_id}) killed: the first new decision on the topic after {first_s:.1f} s")
            await asyncio.to_thread(broker.launch)
            await asyncio.to_thread(broker.wait_ready, 3)
        found = await audited(real, deployer)
        print(f"{dict(deployer.counts)}; {dict(found.ends)}; {dict(found.seen)}")
        assert not found.broken
        assert found.ends["promoted"] > 5
