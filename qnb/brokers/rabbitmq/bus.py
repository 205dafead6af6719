"""Mailboxes and presence on RabbitMQ: an exchange that knows peers by name, and a queue of everybody's last beats.

A mailbox is a queue that waits for its peer while a connection is lost, since a note may be the only copy there is of
an outcome; the server removes it when the peer has been away for long. A beat is a message that the server drops after
PRESENCE_SECONDS; who wants to know who is there looks at all of them. Nobody listens to beats.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from collections import deque
from collections.abc import Sequence

import msgspec
from pika import spec

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.brokers.rabbitmq.admin import Admin, Desk, Found
from qnb.brokers.rabbitmq.channel import Answer, Channel, ChannelClosed, Owner
from qnb.brokers.rabbitmq.link import Connection, Link, User
from qnb.brokers.rabbitmq.publish import Publisher
from qnb.brokers.rabbitmq.wire import Arrived, Content, Properties, encode_ack
from qnb.errors import BrokerError
from qnb.message import UNREADABLE, Note

_JOIN_SECONDS = 10.0
# So long a mailbox waits for its peer, which may be gone for good: longer than anyone rides out an absence.
_KEPT_SECONDS = 60.0
_REMEMBERED = 1000  # notes, of which the server may not know yet that they have come
_UNACKED, _ACK_SECONDS = 200, 0.005  # so many of them at most, for so long
_PRESENCE_ARGUMENTS = {"x-message-ttl": round(PRESENCE_SECONDS * 1000), "x-expires": 3_600_000}


class _Beat(msgspec.Struct, array_like=True):
    """`info` None: this peer leaves."""

    peer: str
    info: bytes | None


class RabbitInbox(Owner, User):
    """See Inbox of the ports. The link's thread puts notes in; one other thread takes them out."""

    def __init__(self, bus: RabbitBus, link: Link, peer: str) -> None:
        self.peer = peer
        self._bus, self._link = bus, link
        self._name = bus.names.mailbox(peer, secrets.token_hex(4))  # too long a name is told here
        self._connections = itertools.count()
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._last = self._acked = 0  # the tags of the newest that has come, and that is acked
        self._acking: object = None
        self._notes: list[Note] = []
        self._arrived: list[Note] = []  # by now, of what comes at once
        self._changed = threading.Condition()
        self._channel: Channel | None = None
        self._joined = Answer()
        self._woken = self._closed = self._beats = False
        link.add(self)
        try:
            self._joined.get(_JOIN_SECONDS)
        except BaseException:
            link.remove(self)
            raise

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        if not self._notes:
            with self._changed:
                self._changed.wait_for(lambda: self._notes or self._woken or self._closed, timeout)
        self._woken = False
        # Nothing from here on can be interrupted by Ctrl-C, or what was taken would be lost.
        taken = self._notes[:limit]
        del self._notes[:limit]
        return taken

    def beat(self, info: bytes = b"") -> None:
        self._beats = True
        self._bus.beat(_Beat(self.peer, info))

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._link.remove(self)
        self._link.post(self._leave)
        if self._beats and self._link.connection is not None:
            with contextlib.suppress(BrokerError):  # the server is away: then nobody sees this peer any more
                self._bus.beat(_Beat(self.peer, None))

    # ------------------------------------------------------------ in the link's thread

    def link_up(self, connection: Connection) -> None:
        name = self._name
        self._last = self._acked = 0
        self._channel = channel = Channel(connection, self)
        expires = {"x-expires": round(_KEPT_SECONDS * 1000)}
        # The server may not have noticed yet that the connection before is lost: this one comes first.
        first = {"x-priority": next(self._connections)}
        channel.ask(spec.Exchange.Declare(0, self._bus.names.bus, "direct", False, True), lambda _: None)
        channel.ask(spec.Queue.Declare(0, name, False, True, False, False, False, expires), lambda _: None)
        channel.ask(spec.Queue.Bind(0, name, self._bus.names.bus, self.peer), lambda _: None)
        channel.ask(spec.Basic.Consume(0, name, "in", False, False, False, False, first), self._joined.put)

    def arrived(self, arrived: Arrived, properties: Properties, body: bytes) -> None:
        self._last = arrived.tag
        if arrived.redelivered and properties.id in self._seen:
            return  # it came, and its ack was lost
        self._seen.append(properties.id)
        self._arrived.append(Note(self.peer, properties.type, body))

    def told(self) -> None:
        if self._arrived:
            with self._changed:
                self._notes += self._arrived
                self._arrived.clear()
                self._changed.notify_all()
        if self._last - self._acked > _UNACKED:
            self._ack()
        elif self._last > self._acked and self._acking is None:  # later: whoever waits for the notes is first
            self._acking = self._link.later(_ACK_SECONDS, self._ack)

    def _ack(self) -> None:
        self._acking = None
        if self._last > self._acked and self._channel is not None:
            self._channel.write(encode_ack(self._channel.number, self._last, True))
            self._acked = self._last

    def cancelled(self, consumer: str) -> None:
        """Somebody removed the mailbox."""
        if self._channel is not None:
            self._channel.close()
        if self._link.connection is not None and not self._closed:
            self.link_up(self._link.connection)

    def closed(self, error: Exception) -> None:
        self._channel = None
        if isinstance(error, ChannelClosed):
            # It may lie on a server of the cluster that is down.
            self._name = self._bus.names.mailbox(self.peer, secrets.token_hex(4))
            self._joined.put(error.translate(self._link.target.place))
            self._link.later(1.0, self._again)

    def _again(self) -> None:
        if self._channel is None and self._link.connection is not None and not self._closed:
            self.link_up(self._link.connection)

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.ask(spec.Queue.Delete(0, self._name), lambda _: None)
            self._channel.close()


class RabbitBus:
    """See Bus of the ports."""

    def __init__(self, link: Link, admin: Admin) -> None:
        self.names = admin.names
        self._link, self._admin = link, admin
        exchange = spec.Exchange.Declare(0, self.names.bus, "direct", False, True)
        self._publisher = Publisher(link, [exchange])
        self._beating = False

    def join(self, peer: str) -> RabbitInbox:
        return RabbitInbox(self, self._link, peer)

    def post_many(self, notes: Sequence[Note]) -> None:
        exchange, new_id = self.names.bus, self._publisher.new_id
        contents = [
            Content(exchange, note.to, note.body, Properties(new_id(), type=note.kind), transient=True, mandatory=False)
            for note in notes
        ]
        self._publisher.send(contents, self._admin.options.patience)

    def beat(self, beat: _Beat) -> None:
        """Tell of a peer."""
        name = Properties(self._publisher.new_id())
        content = Content("", self.names.presence, msgspec.msgpack.encode(beat), name, transient=True)
        for _ in range(2):
            if not self._publisher.send([content], PRESENCE_SECONDS).returned:
                return
            self._admin.run(self._make_presence)

    def _make_presence(self, desk: Desk) -> None:
        desk.ask(spec.Queue.Declare(0, self.names.presence, False, True, False, False, False, _PRESENCE_ARGUMENTS))

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        newest: dict[str, tuple[int, _Beat]] = {}

        def outdated(found: Sequence[Found]) -> list[int]:
            gone = []
            for message in found:
                try:
                    beat = msgspec.msgpack.decode(message.body, type=_Beat)
                except UNREADABLE:  # of a stranger
                    gone.append(message.tag)
                    continue
                if beat.peer in newest:
                    gone.append(newest[beat.peer][0])
                newest[beat.peer] = message.tag, beat
            return gone

        self._admin.browse(self.names.presence, outdated)
        return [
            Presence(peer, beat.info)
            for peer, (_, beat) in sorted(newest.items())
            if beat.info is not None and peer.startswith(prefix)
        ]
