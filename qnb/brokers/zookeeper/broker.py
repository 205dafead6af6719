"""Apache ZooKeeper as broker: `zookeeper://user:password@host:2181,host2:2181/chroot?lease=10`.

ZooKeeper is made for little data: a message has less than 1 MB (what is larger goes to the backend), and all that
waits is in the memory of its servers. In return a dead worker's messages are free as soon as its session is over.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from qnb.brokers.base import DEFAULT_LEASE, DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.zookeeper.bus import ZookeeperBus
from qnb.brokers.zookeeper.consumer import ZookeeperConsumer
from qnb.brokers.zookeeper.link import SHORTEST_SESSION, Link
from qnb.brokers.zookeeper.names import PRIORITIES, node_name
from qnb.brokers.zookeeper.queue import MESSAGE_SPARE, Queues
from qnb.brokers.zookeeper.target import PACKET_BYTES, PACKET_SPARE, target_of
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend


class ZookeeperBroker:
    """See Broker of the ports. `features.limits` follow the URL's `jute_maxbuffer`, which has to be the servers'."""

    scheme: ClassVar[str] = "zookeeper"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.BUILT,
        redelivery=Support.NATIVE,
        delay=Support.BUILT,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.NATIVE,
        remote_control=Support.BUILT,
        purge=Support.BUILT,
        queue_depth=Support.BUILT,
        survives_restart=Support.NATIVE,
        limits=Limits(
            message_bytes=PACKET_BYTES - PACKET_SPARE - MESSAGE_SPARE,
            lease_min_seconds=SHORTEST_SESSION,
            priority_levels=PRIORITIES,
        ),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        prefix = address.options.get("prefix", "")
        chroot = address.path.rstrip("/")
        target = target_of(address, f"{chroot}/{node_name(prefix)}.qnb" if prefix else f"{chroot}/qnb")
        size = target.packet - MESSAGE_SPARE
        limits = replace(self.features.limits, message_bytes=size)
        self.features = with_limit(replace(self.features, limits=limits), address)
        self._lease = address.number("lease", 0.0) or None
        self._link = Link(target, self._lease or DEFAULT_LEASE)
        self._queues = Queues(self._link)
        try:
            self._queues.make_root()
            self._queues.set_clock()
        except BaseException:
            self._link.close()
            raise
        self._lock = threading.Lock()
        self._consumers: list[ZookeeperConsumer] = []
        self._bus: ZookeeperBus | None = None

    def declare(self, spec: QueueSpec) -> None:
        self._queues.declare(spec)

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        check_envelopes(envelopes, self.features, self.url)
        self._link.check_open()
        if envelopes:
            self._queues.publish(envelopes)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> ZookeeperConsumer:
        self._link.check_open()
        consumer = ZookeeperConsumer(self._queues, queues, prefetch, self._lease)
        with self._lock:
            self._consumers = [*(each for each in self._consumers if not each.closed), consumer]
        return consumer

    def depth(self, queue: str) -> int | None:
        return self._queues.depth(queue)

    def queues(self, prefix: str = "") -> Sequence[str]:
        return [name for name in self._queues.names() if name.startswith(prefix)]

    def purge(self, queue: str) -> int:
        return self._queues.purge(queue)

    def remove(self, queue: str) -> None:
        self._queues.remove(queue)

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        return self._queues.dead_letters(queue, limit)

    def bus(self) -> ZookeeperBus:
        with self._lock:
            if self._bus is None:
                self._bus = ZookeeperBus(self._link, secrets.token_hex(6))
            return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        """None: results do not belong into ZooKeeper."""
        return None

    def close(self) -> None:
        with self._lock:
            consumers, self._consumers = self._consumers, []
            bus = self._bus
        self._link.hurry()
        for consumer in consumers:
            consumer.close()
        if bus is not None:
            bus.close()
        self._link.close()
