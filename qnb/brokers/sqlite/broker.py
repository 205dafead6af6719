"""The embedded broker: queues, leases and mailboxes in one SQLite file, for all processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from qnb.brokers.base import DEFAULT_LEASE, DeadLetter, Inbox, QueueSpec, Settle, Turn
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.sqlite.bell import bells_for, topic_of
from qnb.brokers.sqlite.bus import SqliteBus
from qnb.brokers.sqlite.consumer import SqliteConsumer
from qnb.brokers.sqlite.file import Database
from qnb.brokers.sqlite.outcomes import OutcomeWriter
from qnb.brokers.sqlite.queue import QueueTables
from qnb.brokers.sqlite.schema import broker_statements, table_prefix
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note, Stored
from qnb.settings import embedded_path, parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend
    from qnb.brokers.base import Consumer

MESSAGE_BYTES = 512 * 1024 * 1024


class SqliteBroker:
    """One file, any number of kernels and workers on this machine."""

    scheme: ClassVar[str] = "sqlite"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.NATIVE,
        redelivery=Support.NATIVE,
        delay=Support.NATIVE,
        priority=Support.NATIVE,
        dead_letter=Support.NATIVE,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.NATIVE,
        queue_depth=Support.NATIVE,
        survives_restart=Support.NATIVE,
        limits=Limits(message_bytes=MESSAGE_BYTES, priority_levels=10),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.features = with_limit(self.features, address)
        self.path = embedded_path(address)
        self.prefix = table_prefix(address.options.get("prefix"))
        self._lease = address.number("lease", 0.0) or None
        self._database = Database(self.path, broker_statements(self.prefix))
        self._bells = bells_for(str(self.path))
        self._bus = SqliteBus(self._database, self._bells, self.prefix)
        self._tables = QueueTables(self.prefix)
        self._consumers: list[SqliteConsumer] = []
        self._closed = False

    def declare(self, spec: QueueSpec) -> None:
        wanted = [(spec.lease,)]
        if self._database.read(f"SELECT lease FROM {self.prefix}queues WHERE name = ?", (spec.name,)) != wanted:
            with self._database.lock, self._database.transaction as connection:
                connection.execute(
                    f"INSERT INTO {self.prefix}queues(name, lease) VALUES(?, ?) "
                    "ON CONFLICT(name) DO UPDATE SET lease = excluded.lease",
                    (spec.name, spec.lease),
                )

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        if not envelopes:
            return
        check_envelopes(envelopes, self.features, self.url)
        with self._database.lock, self._database.transaction as connection:
            self._tables.publish(connection, envelopes)
        self._ring(envelopes)

    def _ring(self, envelopes: Iterable[Envelope]) -> None:
        counts: dict[str, int] = {}
        for envelope in envelopes:
            counts[envelope.queue] = counts.get(envelope.queue, 0) + 1
        for queue, count in counts.items():
            self._bells.ring(topic_of("queue", queue), count)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> SqliteConsumer:
        names = list(dict.fromkeys(queues))
        marks = ", ".join("?" * len(names))
        declared = self._database.read(f"SELECT lease FROM {self.prefix}queues WHERE name IN ({marks})", names)
        lease = self._lease or min((row[0] for row in declared), default=DEFAULT_LEASE)
        made = SqliteConsumer(self._database, self._bells, self._tables, names, max(1, prefetch), lease)
        self._consumers = [*(each for each in self._consumers if not each.closed), made]
        return made

    def depth(self, queue: str) -> int | None:
        ready = self._database.read(f"SELECT count(*) FROM {self.prefix}ready WHERE queue = ?", (queue,))
        later = self._database.read(
            f"SELECT count(*) FROM {self.prefix}later WHERE queue = ? AND (NOT held OR due <= ?)", (queue, time.time())
        )
        return int(ready[0][0]) + int(later[0][0])

    def queues(self, prefix: str = "") -> Sequence[str]:
        rows = self._database.read(f"SELECT name FROM {self.prefix}queues ORDER BY name")
        return [name for (name,) in rows if name.startswith(prefix)]

    def purge(self, queue: str) -> int:
        with self._database.lock, self._database.transaction as connection:
            return self._tables.purge(connection, queue)

    def remove(self, queue: str) -> None:
        with self._database.lock, self._database.transaction as connection:
            self._tables.remove(connection, queue)

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        rows = self._database.read(
            f"SELECT body, reason FROM {self.prefix}dead WHERE queue = ? ORDER BY id DESC LIMIT ?", (queue, limit)
        )
        return [DeadLetter(queue, body, reason) for body, reason in rows]

    def bus(self) -> SqliteBus:
        return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        """Settles with a `sqlite:` backend on the same file in one transaction."""
        same = getattr(backend, "path", None) == self.path and getattr(backend, "prefix", None) == self.prefix
        if backend.scheme != self.scheme or not same:
            return None
        expires: float = getattr(backend, "expires", 0.0)
        outcomes = OutcomeWriter(self.prefix, expires)

        def settle(consumer: Consumer, turn: Turn) -> Sequence[Stored]:
            assert isinstance(consumer, SqliteConsumer)
            if turn.publish:
                check_envelopes(turn.publish, self.features, self.url)
            with self._database.lock, self._database.transaction as connection:
                if turn.publish:
                    self._tables.publish(connection, turn.publish)
                refused = outcomes.write(connection, turn.store)
                self._bus.write(connection, turn.post)
                self._tables.ack(connection, turn.ack)
            consumer.settled(turn.ack)
            self._ring(turn.publish)
            self._bus.ring(turn.post)
            return refused

        return settle

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for consumer in self._consumers:
            consumer.close()
        self._bus.close()
        self._database.close()
        self._bells.close()
