"""A broker out of any table that can be read in the order of its keys and changed by compare-and-swap.

For whoever has a store and wants a broker of it in some forty lines: a subclass says how the table is opened, scanned
and swapped, and has all features, by looking again every few milliseconds. tests/third_party.py is one.

    q/QUEUE                  its lease
    m/QUEUE/LEVEL/NUMBER     a message: when it may be taken (again), deliveries, by whom it is held, the body
    d/QUEUE/NUMBER           a rejected one: the body, the reason
    p/PEER                   who has joined, until when it is present, what it says of itself
    n/PEER/NUMBER            a note: its kind and body
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, unquote

from msgspec import msgpack

from qnb.brokers.base import DEFAULT_LEASE, DeadLetter, Delivery, Inbox, QueueSpec, Settle
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.table_bus import TableBus
from qnb.errors import BrokerUnavailable
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import Address, parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

LEVELS = 10
# key, what has to be there (None: nothing), what is to be there (None: nothing)
Change = tuple[str, bytes | None, bytes | None]
_NUMBERS = count(1)


def number() -> str:
    """A name for a new row, later in order than those made before."""
    return f"{time.time_ns():020d}{next(_NUMBERS):012d}{os.urandom(3).hex()}"


class Table:
    """What a store has to offer. Safe from any thread; errors of its own are told as those of qnb.errors."""

    def open(self, address: Address) -> None:
        """Connect, within 5 seconds. `address.options["prefix"]` keeps tables apart."""
        raise NotImplementedError

    def scan(self, front: str, limit: int | None = None) -> Sequence[tuple[str, bytes]]:
        """The rows whose key begins so, by key (as text of ASCII)."""
        raise NotImplementedError

    def swap(self, changes: Sequence[Change]) -> Sequence[bool]:
        """Make each change whose row is as it says. Each by itself is atomic; which ones were made."""
        raise NotImplementedError

    def shut(self) -> None:
        """Let go of what open() has made."""


class TableBroker(Table):
    """See Broker of the ports. Options: prefix, lease, max_message, and `poll`, seconds between two looks."""

    scheme: ClassVar[str] = "table"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.BUILT,
        redelivery=Support.BUILT,
        delay=Support.BUILT,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.BUILT,
        queue_depth=Support.BUILT,
        survives_restart=Support.NATIVE,
        limits=Limits(priority_levels=LEVELS),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.features = with_limit(self.features, address)
        self.poll = address.number("poll", 0.01)
        self._lease = address.number("lease", 0.0)
        self._closed = False
        self.open(address)

    def _rows(self, front: str) -> Iterator[tuple[str, bytes, Any]]:
        if self._closed:
            raise BrokerUnavailable(f"{self.url} is closed: open a new one")
        for key, row in self.scan(front):
            yield key, row, msgpack.decode(row)

    def declare(self, spec: QueueSpec) -> None:
        key = _key("q", spec.name)[:-1]
        old = next((row for found, row, _ in self._rows(key) if found == key), None)
        self.swap([(key, old, msgpack.encode(spec.lease))])

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        check_envelopes(envelopes, self.features, self.url)
        now = time.time()
        names = {envelope.queue for envelope in envelopes} - set(self.queues())
        changes: list[Change] = [(_key("q", name)[:-1], None, msgpack.encode(DEFAULT_LEASE)) for name in names]
        for one in envelopes:
            key = f"{_key('m', one.queue)}{LEVELS - 1 - one.priority}/{number()}"
            changes.append((key, None, msgpack.encode((now + one.delay, 0, "", one.body))))
        self.swap(changes)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> TableConsumer:
        leases = {_name(key): lease for key, _, lease in self._rows("q/")}
        lease = self._lease or min((leases.get(name, DEFAULT_LEASE) for name in queues), default=DEFAULT_LEASE)
        return TableConsumer(self, queues, prefetch, lease)

    def _waiting(self, queue: str) -> list[tuple[str, bytes]]:
        now = time.time()
        return [
            (key, row) for key, row, (due, _, holder, _) in self._rows(_key("m", queue)) if not holder or due <= now
        ]

    def depth(self, queue: str) -> int | None:
        return len(self._waiting(queue))

    def queues(self, prefix: str = "") -> Sequence[str]:
        return sorted(name for key, _, _ in self._rows("q/") if (name := _name(key)).startswith(prefix))

    def purge(self, queue: str) -> int:
        return sum(self.swap([(key, row, None) for key, row in self._waiting(queue)]))

    def remove(self, queue: str) -> None:
        name = _key("q", queue)[:-1]
        for front in (_key("m", queue), _key("d", queue), name):
            self.swap([(key, row, None) for key, row, _ in self._rows(front) if front != name or key == name])

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        found = [DeadLetter(queue, body, reason) for _, _, (body, reason) in self._rows(_key("d", queue))]
        return found[::-1][:limit]

    def bus(self) -> TableBus:
        return TableBus(self, self.poll)

    def partner(self, backend: Backend) -> Settle | None:
        return None

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.shut()


class TableConsumer:
    """Takes messages of some queues on leases: a row belongs to whoever has swapped himself into it."""

    def __init__(self, broker: TableBroker, queues: Sequence[str], prefetch: int, lease: float) -> None:
        self._broker, self._prefetch, self.lease = broker, max(1, prefetch), lease
        self._name = os.urandom(6).hex()
        self._lock = threading.RLock()
        self._held: dict[str, bytes] = {}  # key → the row as we have made it
        self._woken = self._closed = False
        self.take_from(queues)

    def take_from(self, queues: Sequence[str]) -> None:
        self._queues = list(dict.fromkeys(queues))

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                taken = [] if self._closed else self._take(limit)
            if taken or self._woken or self._closed or time.monotonic() >= end:
                self._woken = False
                return taken
            time.sleep(min(self._broker.poll, max(0.0, end - time.monotonic())))

    def _take(self, limit: int) -> list[Delivery]:
        now = time.time()
        room = min(limit, self._prefetch - sum(msgpack.decode(row)[0] > now for row in self._held.values()))
        if room <= 0:
            return []
        ready = []
        for queue in self._queues:
            for key, row, (due, deliveries, _, body) in self._broker._rows(_key("m", queue)):
                if due <= now:
                    new = msgpack.encode((now + self.lease, deliveries + 1, f"{self._name}{number()}", body))
                    ready.append((key.split("/", 2)[2], key, row, new, queue))
        ready = sorted(ready)[:room]
        made = ready and self._broker.swap([(key, row, new) for _, key, row, new, _ in ready])
        taken = []
        for (_, key, _, new, queue), ours in zip(ready, made, strict=True):
            if ours:
                self._held[key] = new
                _, deliveries, holder, body = msgpack.decode(new)
                taken.append(Delivery(queue, body, deliveries, (key, holder)))
        return taken

    def _mine(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[str, bytes, Any]]:
        """Those whose lease is not over; they are no longer noted as held."""
        now = time.time()
        for key, holder in [delivery.token for delivery in deliveries]:
            row = self._held.get(key)
            if row is not None and (fields := msgpack.decode(row))[2] == holder:
                del self._held[key]
                if fields[0] > now:
                    yield key, row, fields

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            self._broker.swap([(key, row, None) for key, row, _ in self._mine(deliveries)])

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        with self._lock:
            due = time.time() + delay
            rows = self._mine(deliveries)
            self._broker.swap(
                [(k, row, msgpack.encode((due, count - 1, "", body))) for k, row, (_, count, _, body) in rows]
            )

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        with self._lock:
            rows = list(self._mine(deliveries))
            dead = [(f"d/{k.split('/')[1]}/{number()}", msgpack.encode((fields[3], reason))) for k, _, fields in rows]
            self._broker.swap([(key, None, letter) for key, letter in dead])
            gone = self._broker.swap([(key, row, None) for key, row, _ in rows])
            self._broker.swap([(*letter, None) for letter, ours in zip(dead, gone, strict=True) if not ours])

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        with self._lock:
            until = time.time() + seconds
            new = [(key, row, msgpack.encode((until, *fields[1:]))) for key, row, fields in self._mine(deliveries)]
            for (key, _, row), ours in zip(new, self._broker.swap(new), strict=True):
                if ours:
                    self._held[key] = row

    def wake(self) -> None:
        self._woken = True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            held = [(key, msgpack.decode(row)[2]) for key, row in self._held.items()]
            self.release_many([Delivery("", b"", 0, token) for token in held])


def _key(kind: str, name: str) -> str:
    """The front of the keys of a queue."""
    return f"{kind}/{quote(name, safe='')}/"


def _name(key: str) -> str:
    return unquote(key.split("/")[1])
