"""Publishing with confirms: many messages under way, each known to be taken, refused or unroutable, or sent again."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pika import spec

from qnb.brokers.rabbitmq.channel import Answer, Channel, ChannelClosed, ConnectionLost, NoAnswer, Owner
from qnb.brokers.rabbitmq.link import Connection, Link, User
from qnb.brokers.rabbitmq.wire import Content, Properties, encode_content
from qnb.errors import BrokerUnavailable

_OPEN, _TAKEN, _REFUSED, _RETURNED = range(4)
_CHUNK_BYTES = 1024 * 1024
# No confirm for so long: sent again on another channel; twice as long the next time.
_STALL_SECONDS = 2.0


@dataclass(slots=True)
class Unsent:
    """What was not taken, by position: `returned` by the server since no queue is there, `refused` by a queue."""

    returned: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.returned or self.refused)


class _Batch:
    """Messages that are under way, and what has become of each."""

    __slots__ = ("answer", "contents", "fate", "left")

    def __init__(self, contents: Sequence[Content]) -> None:
        self.contents = contents
        self.fate = bytearray(len(contents))
        self.left = len(contents)
        self.answer = Answer()

    def settle(self, position: int, fate: int) -> None:
        if self.fate[position] == _OPEN:
            self.fate[position] = fate
        self.left -= 1
        if not self.left:
            self.answer.put(None)

    def find(self, name: str) -> int | None:
        return next((at for at, content in enumerate(self.contents) if content.properties.id == name), None)


class Publisher(Owner, User):
    """A channel in confirm mode. send() is safe from any thread; messages of one thread keep their order."""

    def __init__(self, link: Link, setup: Sequence[Any] = ()) -> None:
        self._link, self._setup = link, setup
        self._channel: Channel | None = None
        self._under_way: dict[int, tuple[_Batch, int]] = {}
        self._next = self._lowest = 1
        self._start = secrets.token_hex(5)
        self._numbers = itertools.count(1)
        link.add(self)

    def new_id(self) -> str:
        """An id that no other message has."""
        return f"{self._start}{next(self._numbers):x}"

    def send(self, contents: Sequence[Content], patience: float) -> Unsent:
        """Returns when the server has said what became of all of them. Sends again what a lost connection left open."""
        unsent = Unsent()
        todo = list(range(len(contents)))
        deadline = time.monotonic() + patience
        stall = _STALL_SECONDS
        while todo:
            batch = _Batch([contents[position] for position in todo])
            try:
                self._start_batch(batch, deadline)
                self._await(batch, deadline, stall)
                stall *= 2
            except ConnectionLost as error:
                if time.monotonic() >= deadline:
                    raise self._explain() from error
            except ChannelClosed as error:
                raise error.translate(self._link.target.place) from error
            unsent.returned += [todo[at] for at, fate in enumerate(batch.fate) if fate == _RETURNED]
            unsent.refused += [todo[at] for at, fate in enumerate(batch.fate) if fate == _REFUSED]
            todo = [todo[at] for at, fate in enumerate(batch.fate) if fate == _OPEN]
        return unsent

    def _await(self, batch: _Batch, deadline: float, stall: float) -> None:
        """Until all is known. A quorum queue that has no leader just then, as after a restart, swallows messages."""
        while True:
            left = batch.left
            try:
                batch.answer.get(min(stall, max(0.1, deadline - time.monotonic())))
                return
            except NoAnswer:
                connection = self._link.connection
                blocked = connection is not None and connection.blocked
                if time.monotonic() >= deadline or (batch.left == left and not blocked):
                    self._link.post(partial(self._renew, self._channel))
                    raise

    def _explain(self) -> BrokerUnavailable:
        connection = self._link.connection
        place = self._link.target.place
        if connection is not None and connection.blocked:
            return BrokerUnavailable(
                f"the RabbitMQ at {place} takes no messages ({connection.blocked}): free memory or disk space there"
            )
        return BrokerUnavailable(f"the RabbitMQ at {place} did not confirm in time: is it overloaded?")

    def _start_batch(self, batch: _Batch, deadline: float) -> None:
        self._link.wait_up(deadline)
        channel = self._channel
        if channel is None:  # it was closed a moment ago, and is about to be opened again
            answer = Answer()
            self._link.post(lambda: answer.put(None))
            answer.get(1.0)
            time.sleep(0.001)
            return batch.answer.put(ConnectionLost("no channel"))
        number, body_max = channel.number, channel.connection.body_max
        parts: list[bytes] = []
        size = first = 0
        for position, content in enumerate(batch.contents):
            part = encode_content(number, content, body_max)
            parts.append(part)
            size += len(part)
            if size > _CHUNK_BYTES:
                self._post(channel, batch, range(first, position + 1), parts)
                parts, size, first = [], 0, position + 1
        if parts:
            self._post(channel, batch, range(first, len(batch.contents)), parts)
        return None

    def _post(self, channel: Channel, batch: _Batch, positions: range, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)

        def write() -> None:
            if channel is not self._channel:
                batch.answer.put(ConnectionLost("another channel by now"))
                return
            for position in positions:
                self._under_way[self._next] = batch, position
                self._next += 1
            channel.write(data)

        self._link.post(write)

    # ------------------------------------------------------------ in the link's thread

    def link_up(self, connection: Connection) -> None:
        self._next = self._lowest = 1
        self._channel = channel = Channel(connection, self)
        channel.ask(spec.Confirm.Select(), lambda _: None)
        for method in self._setup:
            channel.ask(method, lambda _: None)

    def _renew(self, channel: Channel | None) -> None:
        """Give up a channel on which nothing moves."""
        if channel is not None and channel is self._channel and self._link.connection is not None:
            channel.close()
            self.closed(ConnectionLost("no confirms"))
            self.link_up(self._link.connection)

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        fate = _TAKEN if taken else _REFUSED
        for each in range(self._lowest, tag + 1) if multiple else (tag,):
            found = self._under_way.pop(each, None)
            if found is not None:
                found[0].settle(found[1], fate)
        if multiple or tag == self._lowest:
            self._lowest = tag + 1

    def returned(self, text: str, properties: Properties) -> None:
        for batch in {id(batch): batch for batch, _ in self._under_way.values()}.values():
            position = batch.find(properties.id)
            if position is not None:
                batch.fate[position] = _RETURNED
                return

    def closed(self, error: Exception) -> None:
        self._channel = None
        under_way, self._under_way = self._under_way, {}
        for batch, _ in under_way.values():
            batch.answer.put(error)
        if isinstance(error, ChannelClosed) and self._link.connection is not None:
            self.link_up(self._link.connection)
