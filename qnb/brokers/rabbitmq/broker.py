"""RabbitMQ as a broker: quorum queues, each with a classic companion for messages that have a priority.

URLs: amqp://user:password@host:5672/vhost, several hosts with commas; amqps:// (ssl_ca_certs, ssl_certfile,
ssl_keyfile, ssl_check_hostname …). Options: prefix (default qnb), lease (seconds), max_message (bytes), dead_letters
(how many are kept, 10000), patience (seconds to ride out an absence of the server, 30), heartbeat (seconds, default
half of the lease), queue_type (quorum or classic), young (seconds for which the companion of a new quorum queue takes
all its messages, 3), consumer_timeout (seconds, the server's own setting if that is less than its default of 1800).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from qnb.brokers.base import DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.rabbitmq.admin import YOUNG_SECONDS, Admin, AdminOptions
from qnb.brokers.rabbitmq.bus import RabbitBus
from qnb.brokers.rabbitmq.consumer import RabbitConsumer
from qnb.brokers.rabbitmq.link import Link
from qnb.brokers.rabbitmq.names import LONGEST_DELAY, Names, delay_ms
from qnb.brokers.rabbitmq.publish import Publisher, Unsent
from qnb.brokers.rabbitmq.settle import REASON_HEADER
from qnb.brokers.rabbitmq.target import target_of
from qnb.brokers.rabbitmq.wire import Content, Properties
from qnb.errors import BrokerUnavailable, ConfigurationError, PublishFailed
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

# RabbitMQ 4 takes 16 MiB unless its max_message_size says otherwise, older ones 128 MiB.
LARGEST_MESSAGE = 16 * 1024 * 1024


class RabbitBroker:
    """Queues on a RabbitMQ server or cluster."""

    scheme: ClassVar[str] = "amqp"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.BUILT,
        redelivery=Support.NATIVE,
        delay=Support.BUILT,
        priority=Support.NATIVE,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.NATIVE,
        queue_depth=Support.NATIVE,
        survives_restart=Support.NATIVE,
        limits=Limits(message_bytes=LARGEST_MESSAGE, delay_seconds=LONGEST_DELAY, priority_levels=10),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.features = with_limit(self.features, address)
        queue_type = address.options.get("queue_type", "quorum")
        if queue_type not in ("quorum", "classic"):
            raise ConfigurationError(f"{self.url}: queue_type is quorum or classic")
        options = AdminOptions(
            queue_type,
            int(address.number("dead_letters", 10_000)),
            address.number("patience", 30.0),
            address.number("young", YOUNG_SECONDS),
            address.number("consumer_timeout", 1800.0),
        )
        self._lease = address.number("lease", 0.0) or None
        self._closed = False
        self._lock = threading.Lock()
        self._bus: RabbitBus | None = None
        self._consumers: list[RabbitConsumer] = []
        self._link = Link(target_of(address))
        self._link.open()
        self._publisher = Publisher(self._link)
        self._admin = Admin(self._link, Names(address.options.get("prefix", "qnb")), self._publisher, options)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable(f"{self.url} is closed: open a new one")

    def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        self._admin.declare(spec.name, spec.lease)

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        self._check_open()
        check_envelopes(envelopes, self.features, self.url)
        for delay in {envelope.delay for envelope in envelopes if envelope.delay > 0}:
            delay_ms(delay)
        unsent = self._send(envelopes)
        if unsent.returned:  # somebody removed the queue: once more, with a new one
            again = [envelopes[position] for position in sorted(unsent.returned)]
            for queue in {envelope.queue for envelope in again}:
                self._admin.forget(queue)
            second = self._send(again)
            failed = {id(again[position]) for position in (*second.returned, *second.refused)}
        else:
            failed = set()
        failed |= {id(envelopes[position]) for position in unsent.refused}
        if failed:
            names = ", ".join(sorted({envelope.queue for envelope in envelopes if id(envelope) in failed}))
            raise PublishFailed(
                f"{self.url} did not take {len(failed)} of {len(envelopes)} messages for {names}: "
                "is the queue full, or declared by someone else with a limit?",
                [envelope for envelope in envelopes if id(envelope) in failed],
            )

    def _send(self, envelopes: Sequence[Envelope]) -> Unsent:
        for queue in {envelope.queue for envelope in envelopes}:
            self._admin.ensure(queue)
        names: dict[tuple[str, bool, float], str] = {}
        contents = []
        for envelope in envelopes:
            key = envelope.queue, envelope.priority > 0, envelope.delay
            name = names.get(key)
            if name is None:
                name = names[key] = self._name(*key)
            properties = Properties(self._publisher.new_id(), {}, envelope.priority)
            contents.append(Content("", name, envelope.body, properties))
        return self._publisher.send(contents, self._admin.options.patience)

    def _name(self, queue: str, urgent: bool, delay: float) -> str:
        urgent = urgent or self._admin.is_young(queue)
        if delay > 0:
            return self._admin.late_queue(queue, delay, urgent)
        return self._admin.names.urgent(queue) if urgent else self._admin.names.queue(queue)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        if envelopes:
            self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> RabbitConsumer:
        self._check_open()
        return RabbitConsumer(self._link, self._admin, self._publisher, queues, prefetch, self._lease)

    def depth(self, queue: str) -> int | None:
        self._check_open()
        return self._admin.depth(queue)

    def queues(self, prefix: str = "") -> Sequence[str]:
        self._check_open()
        return [name for name in self._admin.queues() if name.startswith(prefix)]

    def purge(self, queue: str) -> int:
        self._check_open()
        return self._admin.purge(queue)

    def remove(self, queue: str) -> None:
        self._check_open()
        self._admin.remove(queue)

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        self._check_open()
        found = self._admin.browse(self._admin.names.dead(queue))[::-1][:limit]
        return [DeadLetter(queue, one.body, str(one.properties.headers.get(REASON_HEADER, ""))) for one in found]

    def bus(self) -> RabbitBus:
        self._check_open()
        with self._lock:
            if self._bus is None:
                self._bus = RabbitBus(self._link, self._admin)
            return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        return None  # RabbitMQ keeps no results

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._link.close()
