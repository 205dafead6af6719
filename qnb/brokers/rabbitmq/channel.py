"""A channel of a connection to RabbitMQ, and how other threads wait for what comes in on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import spec

from qnb.brokers.rabbitmq import wire as wire
from qnb.errors import AccessDenied, BrokerError, QnbError

if TYPE_CHECKING:
    from qnb.brokers.rabbitmq.link import Connection

_CLOSE = 0x00140028
_CANCEL = 0x003C001E
_GET_OK, _GET_EMPTY = 0x003C0047, 0x003C0048


class ConnectionLost(Exception):
    """The connection broke, or is not there: what was under way may have happened or not."""


class NoAnswer(ConnectionLost):
    """Nothing was heard in time."""


class ChannelClosed(Exception):
    """The server refused something, and closed the channel on which it was asked."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text

    def translate(self, place: str) -> QnbError:
        """As an error of this package."""
        if self.code == 403:
            return AccessDenied(
                f"the RabbitMQ at {place} refuses: {self.text}; the user needs configure, write and read permission"
            )
        return BrokerError(f"the RabbitMQ at {place} refuses: {self.text}")


Done = Callable[[Any], None]  # is given the reply, or an exception


class Answer:
    """What a thread waits for while the link's thread finds out."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: Any = None

    def put(self, value: Any) -> None:
        self._value = value
        self._event.set()

    def get(self, seconds: float) -> Any:
        """The value; raised when it is an exception. NoAnswer when none comes in time."""
        if not self._event.wait(seconds):
            raise NoAnswer("no answer in time")
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value


class Owner:
    """Who a channel tells what comes in. All in the link's thread."""

    def arrived(self, arrived: wire.Arrived, properties: wire.Properties, body: bytes) -> None:
        """A message for a consumer of this channel."""

    def told(self) -> None:
        """All that came with the last messages has been told."""

    def returned(self, text: str, properties: wire.Properties) -> None:
        """A mandatory message that no queue took; its confirm follows."""

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """The server has taken what was published, or refuses."""

    def cancelled(self, consumer: str) -> None:
        """The server ended a consumer: its queue is gone."""

    def closed(self, error: Exception) -> None:
        """The channel is no more."""


class Channel:
    """A channel, open from the start: what is sent along with the opening waits for it on the server."""

    def __init__(self, connection: Connection, owner: Owner) -> None:
        self.connection, self.owner = connection, owner
        self.number = connection.admit(self)
        self.open = True
        self._waiting: dict[object, deque[Done]] = {}
        self._getting: deque[tuple[str, Done]] = deque()
        self._got: Done | None = None
        self._message: tuple[Any, wire.Properties | None, int, list[bytes]] = (None, None, 0, [])
        self.ask(spec.Channel.Open(), lambda _: None)

    def send(self, method: Any) -> None:
        """A method that has no reply."""
        self.write(wire.encode_method(self.number, method))

    def write(self, data: bytes) -> None:
        """Frames that are ready."""
        if self.open:
            self.connection.write(data)

    def ask(self, method: Any, done: Done) -> None:
        """A method that has a reply. Several may be under way."""
        key = (method.INDEX + 1, getattr(method, "consumer_tag", ""))  # AMQP numbers each reply after its question
        self._waiting.setdefault(key, deque()).append(done)
        self.send(method)

    def get(self, queue: str, label: str, done: Done) -> None:
        """Ask for one message, which arrives as if for a consumer of that name; `done` also when there is none."""
        self._getting.append((label, done))
        self.send(spec.Basic.Get(0, queue, False))

    def close(self) -> None:
        """Give up what is unsettled here; deliveries that are on their way are dropped."""
        if self.open:
            self.owner = Owner()
            self.send(spec.Channel.Close(0, "", 0, 0))
            self.open = False

    def frame(self, kind: int, payload: bytes) -> None:
        """A frame has come."""
        if kind == wire.BODY:
            method, properties, size, parts = self._message
            parts.append(payload)
            size -= len(payload)
            self._message = method, properties, size, parts
            if size <= 0:
                self._finish()
        elif kind == wire.HEADER:
            size, properties = wire.decode_header(payload)
            self._message = self._message[0], properties, size, []
            if size == 0:
                self._finish()
        else:
            self._method(int.from_bytes(payload[:4]), payload)

    def _method(self, index: int, payload: bytes) -> None:
        if index == wire.DELIVER:
            self._message = wire.decode_deliver(payload), None, 0, []
        elif index in (wire.ACK, wire.NACK):
            tag, multiple = wire.decode_confirm(payload)
            self.owner.confirmed(tag, multiple, index == wire.ACK)
        elif index == wire.RETURN:
            self._message = wire.decode_method(payload), None, 0, []
        elif index == _GET_OK:
            method = wire.decode_method(payload)
            label, done = self._getting.popleft()
            self._message = wire.Arrived(label, method.delivery_tag, method.redelivered), None, 0, []
            self._got = done
        elif index == _GET_EMPTY:
            self._getting.popleft()[1](None)
        elif index == _CANCEL:
            self.owner.cancelled(wire.decode_method(payload).consumer_tag)
        elif index == _CLOSE:
            method = wire.decode_method(payload)
            self.send(spec.Channel.CloseOk())
            self.end(ChannelClosed(method.reply_code, method.reply_text))
        else:
            method = wire.decode_method(payload)
            if isinstance(method, spec.Channel.CloseOk):
                self.end(ConnectionLost("closed"))
                return
            waiting = self._waiting.get((index, getattr(method, "consumer_tag", "")))
            waiting = waiting or self._waiting.get((index, ""))
            if waiting:
                waiting.popleft()(method)

    def _finish(self) -> None:
        method, properties, _, parts = self._message
        assert properties is not None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._message = (None, None, 0, [])
        if isinstance(method, wire.Arrived):
            self.owner.arrived(method, properties, body)
            if self._got is not None:
                done, self._got = self._got, None
                done(None)
        else:
            self.owner.returned(method.reply_text, properties)

    def end(self, error: Exception) -> None:
        """It is closed, or its connection is."""
        self.open = False
        self.connection.channels.pop(self.number, None)
        waiting, self._waiting = self._waiting, {}
        getting, self._getting = self._getting, deque()
        for _, done in getting:
            done(error)
        for line in waiting.values():
            for done in line:
                done(error)
        self.owner.closed(error)
