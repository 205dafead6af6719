"""What is written where: topic names, and the records of a queue."""

from __future__ import annotations

import itertools
import re
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qnb.brokers.base import PROBE_PREFIX
from qnb.errors import ConfigurationError
from qnb.settings import Address

LEVELS = 10
LATER, DEAD = ".later", ".dead"
_DUE, _DELIVERIES, _PRIORITY, _CLAIM, REASON = "due", "deliveries", "priority", "claim", "reason"
_PLAIN = re.compile(r"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"\.([0-9a-f]+)\.")
_TOPIC_LENGTH = 249
_KEY = struct.Struct(">Q")
_numbers = itertools.count()


def base_of(address: Address) -> str:
    """What every topic and the group are called first."""
    prefix = address.options.get("prefix", "qnb")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", prefix):
        raise ConfigurationError(f"{address}: the prefix becomes part of topic names: 1 to 60 of A-Z a-z 0-9 . _ -")
    return f"{prefix}."


def is_probe(queue: str) -> bool:
    """Whether it was made to try a feature, and goes soon."""
    return queue.startswith(PROBE_PREFIX)


class Names:
    """The topics of a prefix: `q.` and the queue, its levels `.p1` … `.p9`, `.later` and `.dead`; `bus` and `peers`."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._group = f"{base}workers"
        self.leases = f"{base}leases"
        self.bus, self.peers = f"{base}bus", f"{base}peers"
        self._start = f"{base}q."
        self._kinds = re.compile(
            re.escape(self._start) + r"((?:[A-Za-z0-9_-]|\.[0-9a-f]+\.)*)(|\.p[1-9]|\.later|\.dead)"
        )

    def topic(self, queue: str, priority: int = 0) -> str:
        """The topic of one level of a queue."""
        name = self._start + _PLAIN.sub(lambda found: f".{ord(found[0]):x}.", queue)
        if len(name) > _TOPIC_LENGTH - len(LATER):
            raise ConfigurationError(f"queue name {queue!r} is too long for a Kafka topic ({_TOPIC_LENGTH} characters)")
        return f"{name}.p{priority}" if priority else name

    def group(self, queue: str) -> str:
        """The group of those who take from a queue: all workers are in one. A probe's queue has its own: who joins a
        group makes all in it share their partitions anew, and ten queues that come and go would do little else."""
        return f"{self.base}{self.topic(queue)}" if is_probe(queue) else self._group

    def groups(self, topics: Iterable[str]) -> list[str]:
        """The groups of all who take from these topics."""
        return list(dict.fromkeys(self.group(pair[0]) for topic in topics if (pair := self.queue_of(topic))))

    def later(self, queue: str) -> str:
        return self.topic(queue) + LATER

    def dead(self, queue: str) -> str:
        return self.topic(queue) + DEAD

    def queue_of(self, topic: str) -> tuple[str, str] | None:
        """(queue, "" or ".p1" … or ".later" or ".dead") of a topic; None when it is none of these."""
        found = self._kinds.fullmatch(topic)
        if found is None:
            return None
        return _ESCAPED.sub(lambda code: chr(int(code[1], 16)), found[1]), found[2]


def stamp() -> int:
    """Orders messages by when they were sent, as far as the clocks of their senders agree."""
    return time.time_ns()


class Record(NamedTuple):
    """What is produced."""

    topic: str
    partition: int
    value: bytes
    key: bytes
    headers: list[tuple[str, bytes]] | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """A message between the log and its end.

    `before`: how often it was handed out before it was written where it is now. `due` is monotonic, 0 when at once.
    `turn` tells one hand-out from the next.
    """

    queue: str
    topic: str
    partition: int
    offset: int
    body: bytes
    priority: int = 0
    order: int = 0
    before: int = 0
    due: float = 0.0
    claim: bytes = b""
    state: int = 0
    deadline: float = 0.0
    deliveries: int = 0
    turn: int = 0
    linked: bool = False
    parked: bool = False
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def place(self) -> tuple[str, int]:
        return self.topic, self.partition


def key_of(order: int) -> bytes:
    return _KEY.pack(order)


def headers_of(
    *, due: float = 0.0, deliveries: int = 0, priority: int | None = None, claim: bytes = b""
) -> list[tuple[str, bytes]] | None:
    """Only what is not as usual; `due` is Unix time."""
    headers = []
    if due:
        headers.append((_DUE, b"%.3f" % due))
    if deliveries:
        headers.append((_DELIVERIES, b"%d" % deliveries))
    if priority is not None:
        headers.append((_PRIORITY, b"%d" % priority))
    if claim:
        headers.append((_CLAIM, claim))
    return headers or None


def copy_of(entry: Entry, topic: str, partition: int, deliveries: int, claim: bytes = b"", due: float = 0.0) -> Record:
    """The same message to be written elsewhere; its place among the others stays."""
    headers = headers_of(due=due, deliveries=deliveries, priority=entry.priority, claim=claim)
    return Record(topic, partition, entry.body, key_of(entry.order), headers)


def entry_of(message: Any, queue: str, kind: str) -> Entry:
    """A fetched message. One that a stranger wrote has no headers of ours, and is handed out like any other."""
    key, body = message.key(), message.value() or b""
    order = _KEY.unpack(key)[0] if key and len(key) == _KEY.size else message.timestamp()[1] * 1_000_000
    entry = Entry(queue, message.topic(), message.partition(), message.offset(), body, order=order)
    if kind.startswith(".p"):
        entry.priority = int(kind[2:])
    headers = message.headers()
    if headers:
        _read_headers(entry, dict(headers))
    return entry


def _read_headers(entry: Entry, headers: dict[str, bytes]) -> None:
    try:
        entry.before = int(headers.get(_DELIVERIES, 0))
        entry.priority = int(headers.get(_PRIORITY, entry.priority))
        if _DUE in headers:
            entry.due = time.monotonic() + float(headers[_DUE]) - time.time()
        entry.claim = headers.get(_CLAIM) or b""
    except (ValueError, TypeError):
        return  # headers of a stranger
