"""Queues as they are on the server: made, counted, emptied, removed, and listed in a directory.

The server tells no client which queues there are. So a queue, the directory, has a message for each; who wants to know
takes all of them and gives them back. An exclusive consumer makes that one client's at a time.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
from pika import spec

from qnb.brokers.base import DEFAULT_LEASE
from qnb.brokers.rabbitmq.channel import Answer, Channel, ChannelClosed, ConnectionLost, Owner
from qnb.brokers.rabbitmq.link import Link
from qnb.brokers.rabbitmq.names import GRACE_SECONDS, Names, delay_ms
from qnb.brokers.rabbitmq.publish import Publisher
from qnb.brokers.rabbitmq.wire import Arrived, Content, Properties, encode_ack
from qnb.errors import BrokerError, BrokerUnavailable
from qnb.message import UNREADABLE

log = logging.getLogger(__name__)
Result = TypeVar("Result")

TOP_PRIORITY = 9
NOT_FOUND, REFUSED, LOCKED, FAILED_PRECONDITION = 404, 403, 405, 406
_ASK_SECONDS = 10.0
# Seen with RabbitMQ 3.10: a quorum queue without replicas that is younger than about a second is empty, and dead, after
# kill -9 of the server, with all that was confirmed. Its companion is not: that takes all messages of a young queue.
YOUNG_SECONDS = 3.0
_BROWSE_SECONDS = 5.0
# A quorum queue that is made again before the server has told its consumers of its end keeps these, and they are deaf.
_PARTING_SECONDS = 0.05
_TRANSFER_SECONDS = 10.0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A line of the directory. `late` names a queue of delayed messages of `queue`; "" is the queue itself, which was
    made at `created` (Unix time)."""

    queue: str
    late: str = ""
    lease: float = DEFAULT_LEASE
    created: float = 0.0


class Found(NamedTuple):
    """A message that was looked at and given back."""

    tag: int
    properties: Properties
    body: bytes


@dataclass(frozen=True, slots=True)
class AdminOptions:
    """How queues are made."""

    queue_type: str = "quorum"
    dead_letters: int = 10_000
    patience: float = 30.0
    young: float = YOUNG_SECONDS
    consumer_timeout: float = 1800.0


class Desk(Owner):
    """A channel for questions; from one thread at a time. It is opened when the first is asked."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Channel | None = None
        self.found: list[Found] = []

    def ask(self, method: Any) -> Any:
        """The reply; ChannelClosed when the server refuses, ConnectionLost."""
        answer = Answer()
        self._link.post(lambda: self._send(method, answer))
        return answer.get(_ASK_SECONDS)

    def _send(self, method: Any, answer: Answer) -> None:
        connection = self._link.connection
        if connection is None:
            answer.put(ConnectionLost("no connection"))
            return
        if self._channel is None:
            self._channel = Channel(connection, self)
        self._channel.ask(method, answer.put)

    def arrived(self, arrived: Arrived, properties: Properties, body: bytes) -> None:
        self.found.append(Found(arrived.tag, properties, body))

    def closed(self, error: Exception) -> None:
        self._channel = None

    def settle(self, tags: Sequence[int]) -> None:
        """Remove these messages."""

        def send() -> None:
            if self._channel is not None:
                for tag in tags:
                    self._channel.write(encode_ack(self._channel.number, tag, False))

        self._link.post(send)

    def leave(self) -> None:
        """Close the channel; returns when what was unsettled is back in its queue."""
        with contextlib.suppress(ConnectionLost, ChannelClosed):  # then it is closed as well
            self.ask(spec.Channel.Close(0, "", 0, 0))


class Admin:
    """Safe from any thread."""

    def __init__(self, link: Link, names: Names, publisher: Publisher, options: AdminOptions) -> None:
        self._link, self.names, self._publisher, self.options = link, names, publisher, options
        self._desk = Desk(link)
        self._lock = threading.RLock()
        self._leases: dict[str, float] = {}  # of the queues that are known to be there
        self._late: dict[str, float] = {}  # until when a queue of delayed messages may be relied on
        self._young: dict[str, float] = {}  # until when a queue is

    def run(self, operation: Callable[[Desk], Result]) -> Result:
        """Do it, again and again while the connection breaks; what the server refuses is translated."""
        deadline = time.monotonic() + self.options.patience
        while True:
            self._link.wait_up(deadline)
            try:
                with self._lock:
                    return operation(self._desk)
            except ConnectionLost as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"the RabbitMQ at {self._link.target.place} does not answer") from error
                time.sleep(0.01)
            except ChannelClosed as error:
                raise error.translate(self._link.target.place) from error

    # ------------------------------------------------------------ making

    def declare(self, queue: str, lease: float) -> None:
        """Make the queue and note its lease."""
        self.ensure(queue, lease)

    def lease(self, queue: str) -> float:
        """The lease with which the queue was declared."""
        return self._leases.get(queue, DEFAULT_LEASE)

    def ensure(self, queue: str, lease: float | None = None) -> None:
        """Make it when it is not there."""
        known = self._leases.get(queue)
        if known is None or (lease is not None and lease != known):
            self.run(lambda desk: self._make(desk, queue, lease))

    def forget(self, queue: str) -> None:
        """Somebody removed it."""
        self._leases.pop(queue, None)
        self._young.pop(queue, None)
        self._late.clear()

    def is_young(self, queue: str) -> bool:
        """Whether a server that is killed now would forget the queue."""
        until = self._young.get(queue)
        if until is not None and until < time.monotonic():
            self._young.pop(queue, None)
            return False
        return until is not None

    def _make(self, desk: Desk, queue: str, lease: float | None) -> None:
        kind = self.options.queue_type
        arguments: dict[str, Any] = {"x-queue-type": kind}
        connection = self._link.connection
        if kind == "quorum" and connection is not None and connection.version >= (4,):
            arguments["x-delivery-limit"] = -1  # how often is for the worker to say, which knows whose fault it was
        if not self._declare(desk, self.names.queue(queue), arguments):
            self._declare(desk, self.names.queue(queue), {})
        self._declare(desk, self.names.urgent(queue), {"x-max-priority": TOP_PRIORITY})
        found = self._entry(queue)
        entry = found or Entry(queue, created=time.time())
        if lease is not None:
            entry = msgspec.structs.replace(entry, lease=lease)
        if entry != found:
            self._enter(entry)
        if kind == "quorum" and abs(time.time() - entry.created) < self.options.young:
            self._young[queue] = time.monotonic() + self.options.young
        self._leases[queue] = entry.lease

    def _declare(self, desk: Desk, name: str, arguments: dict[str, Any]) -> bool:
        """Make a durable queue, or take the one that is there, as it is. False when the server knows no such kind."""
        try:
            desk.ask(spec.Queue.Declare(0, name, False, True, False, False, False, arguments))
        except ChannelClosed as error:
            if error.code != FAILED_PRECONDITION:
                raise
            if self._count(desk, name) is None:
                return False
            log.info("queue %s is used as it is: %s", name, error.text)
        return True

    def late_queue(self, queue: str, seconds: float, urgent: bool) -> str:
        """The name of a queue whose messages go on to `queue` after so many seconds; made, and not about to expire."""
        ms = delay_ms(seconds)
        name = self.names.delayed(queue, ms, urgent)
        if self._late.get(name, 0.0) < time.monotonic():
            target = self.names.urgent(queue) if urgent else self.names.queue(queue)
            arguments = {
                "x-message-ttl": ms,
                "x-expires": ms + round(GRACE_SECONDS * 1000),
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": target,
            }
            begun = time.monotonic()
            self.run(lambda desk: self._declare(desk, name, arguments))
            if self._entry(queue, name) is None:
                self._enter(Entry(queue, name))
            self._late[name] = begun + GRACE_SECONDS / 2
        return name

    # ------------------------------------------------------------ the directory

    def _entry(self, queue: str, late: str = "") -> Entry | None:
        """The line about it."""
        return next((entry for entry in self.entries() if (entry.queue, entry.late) == (queue, late)), None)

    def _enter(self, entry: Entry) -> None:
        """Put a line into the directory; it replaces an older one of the same name."""
        content = Content("", self.names.directory, msgspec.msgpack.encode(entry), Properties())
        self.run(lambda desk: self._declare(desk, self.names.directory, {}))
        if self._publisher.send([content], self.options.patience):
            raise BrokerError(f"the queue {self.names.directory} takes no messages: remove it, and it is made anew")

    def entries(self, drop: Callable[[Entry], bool] = lambda entry: False) -> list[Entry]:
        """All lines, the newest where there were several; those to be dropped are, and so are the outdated."""
        kept: dict[tuple[str, str], Entry] = {}

        def outdated(found: Sequence[Found]) -> list[int]:
            tags: dict[tuple[str, str], int] = {}
            gone = []
            for message in found:
                try:
                    entry = msgspec.msgpack.decode(message.body, type=Entry)
                except UNREADABLE:  # of a stranger
                    gone.append(message.tag)
                    continue
                key = entry.queue, entry.late
                if key in tags:
                    gone.append(tags.pop(key))
                    kept.pop(key, None)
                if drop(entry):
                    gone.append(message.tag)
                else:
                    tags[key], kept[key] = message.tag, entry
            return gone

        self.browse(self.names.directory, outdated)
        return list(kept.values())

    def browse(self, name: str, drop: Callable[[Sequence[Found]], Sequence[int]] = lambda found: ()) -> list[Found]:
        """All messages of a classic queue, the oldest first. They stay there, but for those whose tags `drop` gives."""
        deadline = time.monotonic() + _BROWSE_SECONDS

        def look(_: Desk) -> list[Found] | None:
            desk = Desk(self._link)
            try:
                desk.ask(spec.Basic.Consume(0, name, "look", False, False, True, False, {}))
            except ChannelClosed as error:
                if error.code == NOT_FOUND:
                    return []
                if error.code != REFUSED or "exclusive" not in error.text:
                    raise
                return None  # somebody else looks
            while desk.ask(spec.Queue.Declare(0, name, True)).message_count:
                pass
            desk.ask(spec.Basic.Qos())  # what had been sent to the channel by now has come
            desk.settle(drop(desk.found))
            desk.leave()  # at one stroke it is no longer exclusive, and all is back in its place
            return desk.found

        while True:
            found = self.run(look)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"queue {name} on the RabbitMQ at {self._link.target.place} is held by someone")
            time.sleep(random.uniform(0.002, 0.02))

    # ------------------------------------------------------------ looking and removing

    def _count(self, desk: Desk, name: str) -> int | None:
        """Messages that wait there; None when there is no such queue."""
        try:
            return int(desk.ask(spec.Queue.Declare(0, name, True)).message_count)
        except ChannelClosed as error:
            if error.code == NOT_FOUND:
                return None
            raise

    def _late_of(self, queue: str) -> list[str]:
        return [entry.late for entry in self.entries() if entry.queue == queue and entry.late]

    def depth(self, queue: str) -> int:
        """Messages that wait, delayed ones too."""

        def count(desk: Desk) -> int:
            counts = {name: self._count(desk, name) for name in names}
            expired.update(name for name in late if counts[name] is None)
            return sum(count or 0 for count in counts.values())

        late, expired = self._late_of(queue), set[str]()
        names = [*late, self.names.queue(queue), self.names.urgent(queue)]
        found = self.run(count)
        if expired:
            self.entries(lambda entry: entry.late in expired)
        return found

    def queues(self) -> list[str]:
        """The queues that are there."""
        names = sorted({entry.queue for entry in self.entries() if not entry.late})

        def there(desk: Desk) -> list[str]:
            return [name for name in names if self._count(desk, self.names.queue(name)) is not None]

        return self.run(there)

    def _quietly(self, desk: Desk, method: Any) -> int:
        try:
            return int(desk.ask(method).message_count)
        except ChannelClosed as error:
            if error.code == NOT_FOUND:
                return 0
            raise

    def purge(self, queue: str) -> int:
        """Drop what waits; how many messages."""
        names = [*self._late_of(queue), self.names.urgent(queue), self.names.queue(queue)]
        return self.run(lambda desk: sum(self._quietly(desk, spec.Queue.Purge(0, name)) for name in names))

    def remove(self, queue: str) -> None:
        """Remove the queue and all that belongs to it. The companion last: its consumers are told for certain."""
        names = [*self._late_of(queue), self.names.dead(queue), self.names.queue(queue)]
        self.run(lambda desk: [self._quietly(desk, spec.Queue.Delete(0, name)) for name in names])
        time.sleep(_PARTING_SECONDS)
        self.run(lambda desk: self._quietly(desk, spec.Queue.Delete(0, self.names.urgent(queue))))
        self.entries(lambda entry: entry.queue == queue)
        self.forget(queue)

    def transfer_queue(self, queue: str, urgent: bool, consumer: str) -> str:
        """The name of a queue for one consumer; what is left there goes on to `queue`, or its companion. Made."""
        name = self.names.transfer(f"{queue}{'.priority' if urgent else ''}", consumer)
        arguments = {
            "x-message-ttl": round(_TRANSFER_SECONDS * 1000),
            # Made again long before, while somebody lives; and what the dead left has gone on long before, too.
            "x-expires": round((4 * self.options.consumer_timeout + 6 * _TRANSFER_SECONDS) * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.names.urgent(queue) if urgent else self.names.queue(queue),
        }
        self.run(lambda desk: self._declare(desk, name, arguments))
        return name

    def dead_queue(self, queue: str) -> str:
        """The name of the queue of rejected messages; made."""
        name = self.names.dead(queue)
        arguments = {"x-max-length": self.options.dead_letters}
        self.run(lambda desk: self._declare(desk, name, arguments))
        return name
