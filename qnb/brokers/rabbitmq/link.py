"""A connection to RabbitMQ that comes back by itself: one thread that reads and writes, and channels on it.

pika does handshake, TLS, heartbeats and the loop. Channels are its job too, but its own take one question at a time
and answer messages behind the back of who cancels; these do neither. Whatever is not said to be safe from any thread
belongs to the link's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
from pika import frame
from pika.adapters.select_connection import IOLoop

from qnb.brokers.rabbitmq import wire as wire
from qnb.brokers.rabbitmq.channel import Channel, ConnectionLost
from qnb.brokers.rabbitmq.target import Target, translate_connecting
from qnb.errors import BrokerUnavailable, QnbError

log = logging.getLogger(__name__)
if logging.getLogger("pika").level == logging.NOTSET:
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say is raised or ridden out here

_PAUSE_FIRST, _PAUSE_LONGEST = 0.05, 1.0


class Connection(pika.SelectConnection):  # type: ignore[misc]
    """One connection of pika's, with these channels on it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._splitter = wire.Splitter()
        self.channels: dict[int, Channel] = {}
        self._last_number = 0
        self.blocked = ""
        super().__init__(*arguments, **options)

    def admit(self, channel: Channel) -> int:
        """A free number for a channel."""
        most = self.params.channel_max or 2047
        while True:
            self._last_number = self._last_number % most + 1
            if self._last_number not in self.channels:
                self.channels[self._last_number] = channel
                return self._last_number

    @property
    def body_max(self) -> int:
        """How much of a body fits into one frame."""
        return int(self._get_body_frame_max_length())

    @property
    def version(self) -> tuple[int, ...]:
        """The server's."""
        said = str((self.server_properties or {}).get("version", "0"))
        return tuple(int(part) for part in said.split(".")[:3] if part.isdigit())

    def write(self, data: bytes) -> None:
        """Frames that are ready."""
        self._output_marshaled_frames([data])

    def give_up(self, error: Exception) -> None:
        """Hang up; the close callback follows."""
        self._terminate_stream(error)

    def _on_data_available(self, data_in: bytes) -> None:
        told: set[Channel] = set()
        self.bytes_received += len(data_in)  # by which pika knows, once a heartbeat, that the server is there
        try:
            for kind, number, payload in self._splitter.feed(data_in):
                channel = self.channels.get(number)
                if channel is not None:
                    channel.frame(kind, payload)
                    told.add(channel)
                elif number == 0:
                    whole = kind.to_bytes(1) + bytes(2) + len(payload).to_bytes(4) + payload + b"\xce"
                    value = frame.decode_frame(whole)[1]
                    assert value is not None
                    self._process_frame(value)
            for channel in told:
                channel.owner.told()
        except Exception as error:
            log.exception("the connection to RabbitMQ is given up: a fault on this side")
            self.give_up(error)


class User:
    """What wants to be told when the connection comes and goes. In the link's thread."""

    def link_up(self, connection: Connection) -> None:
        """There is a new connection."""


class Link:
    """The thread and its connection of the moment."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.connection: Connection | None = None  # safe to look at from any thread
        self._error: QnbError | None = None
        self._changed = threading.Condition()
        self._users: list[User] = []
        self._host = 0
        self._tries = 0
        self._pause = _PAUSE_FIRST
        self._closing = False
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name="qnb-rabbitmq", daemon=True)

    # ------------------------------------------------------------ from any thread

    def open(self) -> None:
        """Connect, or raise why not."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self.connection or self._error, 5.0)
            if self.connection is not None:
                return
            error = self._error or translate_connecting(TimeoutError("no answer"), self.target)
        self.close()
        raise error

    def post(self, work: Callable[[], None]) -> None:
        """Run it in the link's thread, soon."""
        self._loop.add_callback_threadsafe(work)

    def wait_up(self, deadline: float) -> None:
        """Until there is a connection; BrokerUnavailable or why else there is none."""
        if self.connection is not None and not self._closing:
            return
        with self._changed:
            self._changed.wait_for(lambda: self.connection or self._closing, max(0.0, deadline - time.monotonic()))
            if self._closing:
                raise BrokerUnavailable(f"{self.target.shown} is closed: open a new one")
            if self.connection is None:
                raise self._error or translate_connecting(TimeoutError("no answer"), self.target)

    def add(self, user: User) -> None:
        """Tell it of connections from now on, the present one first."""
        self.post(lambda: self._add(user))

    def remove(self, user: User) -> None:
        """Tell it no more."""
        self.post(lambda: self._users.remove(user) if user in self._users else None)

    def close(self) -> None:
        """End connection and thread."""
        if self._closing:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.post(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(3.0)

    # ------------------------------------------------------------ in the link's thread

    def later(self, seconds: float, work: Callable[[], None]) -> object:
        """Run it after so many seconds; what this gives is for forget()."""
        return self._loop.call_later(seconds, work)

    def forget(self, timer: object) -> None:
        """Do not run it after all."""
        self._loop.remove_timeout(timer)

    def _run(self) -> None:
        self._connect()
        while not self._closing:
            try:
                self._loop.start()
            except Exception as error:
                log.exception("the connection to RabbitMQ is given up: a fault on this side")
                if self.connection is not None:
                    self.connection.give_up(error)
        self._loop.close()

    def _add(self, user: User) -> None:
        self._users.append(user)
        if self.connection is not None:
            user.link_up(self.connection)

    def _connect(self) -> None:
        if self._closing:
            return
        host, port = self.target.hosts[self._host % len(self.target.hosts)]
        Connection(
            self.target.parameters(host, port),
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._lost,
            custom_ioloop=self._loop,
        )

    def _opened(self, connection: Any) -> None:
        if self._closing:
            connection.close()
            return
        connection.add_on_connection_blocked_callback(lambda _, method: self._block(method.method.reason))
        connection.add_on_connection_unblocked_callback(lambda _, method: self._block(""))
        self._pause, self._tries = _PAUSE_FIRST, 0
        with self._changed:
            self.connection, self._error = connection, None
            self._changed.notify_all()
        for user in list(self._users):
            user.link_up(connection)

    def _block(self, reason: str) -> None:
        if self.connection is not None:
            self.connection.blocked = reason

    def _failed(self, connection: Any, error: BaseException) -> None:
        self._host += 1
        self._tries += 1
        if self._tries % len(self.target.hosts):
            self._connect()
            return
        with self._changed:
            self._error = translate_connecting(error, self.target)
            self._changed.notify_all()
        self._pause = min(_PAUSE_LONGEST, self._pause * 2)
        self.later(self._pause, self._connect)

    def _lost(self, connection: Any, error: BaseException) -> None:
        with self._changed:
            if self.connection is connection:
                self.connection = None
            self._error = translate_connecting(error, self.target)
        for channel in list(connection.channels.values()) if connection is not None else ():
            channel.end(ConnectionLost(str(error)))
        if self._closing:
            self._loop.stop()
        else:
            log.info("the connection to RabbitMQ at %s is lost: %s", self.target.place, error)
            self.later(self._pause, self._connect)

    def _end(self) -> None:
        connection = self.connection
        if connection is not None and connection.is_open:
            connection.close()  # then _lost stops the loop
            self.later(1.0, self._loop.stop)
        else:
            self._loop.stop()
