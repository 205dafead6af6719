"""The bus: one topic of notes that peers read from its end, one of beats, and what consumers tell each other."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.brokers.kafka.client import log
from qnb.brokers.kafka.publisher import Publisher
from qnb.brokers.kafka.reader import Reader
from qnb.brokers.kafka.records import Record, key_of
from qnb.brokers.kafka.topics import BUS_PARTITIONS, Topics
from qnb.brokers.memory.bus import Gate
from qnb.errors import BrokerError, BrokerUnavailable
from qnb.message import UNREADABLE, Note

# How many beats back peers() looks the first time: five seconds of a thousand workers.
_BEATS_BACK = 5000
_ANSWER_SECONDS = 10.0
_BEATS, _TALK = 0, 1


class _Beat(msgspec.Struct, frozen=True, array_like=True):
    """Someone is there; or, without `info`, is not any more. Without a name it only tells what time the server has."""

    peer: str
    info: bytes | None = b""


class Talk(msgspec.Struct, frozen=True, array_like=True):
    """What the consumers and brokers of a prefix tell all others. `places` are (topic, partition, number)."""

    kind: str
    queue: str
    sender: str
    number: int = 0
    places: list[tuple[str, int, int]] = []


_NOTE = msgspec.msgpack.Decoder(Note)
_BEAT = msgspec.msgpack.Decoder(_Beat)
_SAID = msgspec.msgpack.Decoder(Talk)
_encode = msgspec.msgpack.Encoder().encode


class KafkaInbox:
    """The mailbox of one peer: what comes into its partition of the bus from now on, and is for it."""

    def __init__(self, bus: KafkaBus, peer: str, begin: int) -> None:
        self.peer = peer
        self.begin = begin
        self._bus = bus
        self._lock = threading.Lock()
        self._gate = Gate()
        self._notes: list[Note] = []
        self._first = self._taken = 0  # numbers of notes: of the first that is kept, and of the next to hand out
        self._woken = self._beaten = False
        self.closed = False

    def put(self, note: Note) -> None:
        """From the bus's thread."""
        with self._lock:
            used = self._taken - self._first
            if used:
                del self._notes[:used]
                self._first += used
            self._notes.append(note)
        self._gate.open()

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        notes, taken = self._wait(limit, time.monotonic() + timeout)
        # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
        self._taken = taken
        return notes

    def _wait(self, limit: int, end: float) -> tuple[list[Note], int]:
        while True:
            with self._lock:
                at = self._taken - self._first
                notes = self._notes[at : at + limit]
                taken = self._taken + len(notes)
            now = time.monotonic()
            if notes or self._woken or self.closed or now >= end:
                self._woken = False
                return notes, taken
            self._gate.wait(end - now)

    def beat(self, info: bytes = b"") -> None:
        if not self.closed:
            self._beaten = True
            self._bus.beat(_Beat(self.peer, info))

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._gate.open()
        self._bus.leave(self)
        if self._beaten:
            with suppress(BrokerError):  # the server is away: the last beat runs out by itself
                self._bus.beat(_Beat(self.peer, None))


class KafkaBus:
    """Presence, mailboxes and talk, by one reader thread a broker object."""

    def __init__(self, settings: dict[str, Any], topics: Topics, publisher: Publisher, url: str) -> None:
        self._topics, self._publisher, self._url = topics, publisher, url
        self._names = topics.names
        self._reader = Reader({**settings, "group.id": f"{self._names.base}readers"}, self._read, url)
        self._lock = threading.Lock()
        self._inboxes: dict[str, list[KafkaInbox]] = {}
        self._listeners: list[Callable[[Talk], None]] = []
        self._beats: dict[str, tuple[float, bytes]] = {}
        self._ahead: float | None = None  # the server's clock less the monotonic one here
        self._looked = False

    # ------------------------------------------------------------------------------------------ notes

    def _place(self, peer: str) -> tuple[str, int]:
        return self._names.bus, zlib.crc32(peer.encode()) % BUS_PARTITIONS % self._topics.count(self._names.bus)

    def _ends(self, place: tuple[str, int]) -> int:
        self._topics.ensure([place[0]])
        ends = self._topics.ends([place])
        if place not in ends:
            raise BrokerUnavailable(f"{self._url}: partition {place[1]} of {place[0]} has no leader yet: try again")
        return ends[place]

    def join(self, peer: str) -> KafkaInbox:
        place = self._place(peer)
        inbox = KafkaInbox(self, peer, self._ends(place))
        with self._lock:
            self._inboxes.setdefault(peer, []).append(inbox)
        self._reader.add(place, inbox.begin)
        return inbox

    def leave(self, inbox: KafkaInbox) -> None:
        """No more notes for it."""
        with self._lock:
            left = [each for each in self._inboxes.get(inbox.peer, []) if each is not inbox]
            self._inboxes.pop(inbox.peer, None)
            if left:
                self._inboxes[inbox.peer] = left

    def post_many(self, notes: Sequence[Note]) -> None:
        if notes:
            first = self._publisher.stamp(len(notes))
            self._publisher.send_all(
                [Record(*self._place(note.to), _encode(note), key_of(first + at)) for at, note in enumerate(notes)]
            )

    # ------------------------------------------------------------------------------------------ presence

    def beat(self, beat: _Beat) -> None:
        """Confirmed when this returns."""
        self._send_peers(_BEATS, _encode(beat))

    def _send_peers(self, partition: int, value: bytes) -> None:
        self._topics.ensure([self._names.peers])
        self._publisher.send_all([Record(self._names.peers, partition, value, key_of(self._publisher.stamp(1)))])

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        place = (self._names.peers, _BEATS)
        if self._ahead is None:
            self.beat(_Beat(""))  # comes back with the server's time: whose beats are old is the server's to say
        end = self._ends(place)
        if not self._looked:
            self._reader.add(place, max(0, end - _BEATS_BACK))
            self._looked = True
        self._reader.wait(place, end, _ANSWER_SECONDS)
        oldest = time.monotonic() + (self._ahead or 0.0) - PRESENCE_SECONDS
        with self._lock:
            there = [(peer, info) for peer, (at, info) in self._beats.items() if at > oldest]
        return [Presence(peer, info) for peer, info in sorted(there) if peer.startswith(prefix)]

    def _heard_beat(self, beat: _Beat, at: float) -> None:
        ahead = at - time.monotonic()
        self._ahead = ahead if self._ahead is None else max(ahead, self._ahead)
        with self._lock:
            if beat.info is None:
                self._beats.pop(beat.peer, None)
            elif beat.peer:
                self._beats[beat.peer] = (at, beat.info)
            if len(self._beats) > 1000 and at > min(at for at, _ in self._beats.values()) + 60.0:
                self._beats = {peer: kept for peer, kept in self._beats.items() if kept[0] > at - 60.0}

    # ------------------------------------------------------------------------------------------ talk

    def listen(self, listener: Callable[[Talk], None]) -> None:
        """Hear what is said from now on, in the bus's thread."""
        place = (self._names.peers, _TALK)
        end = self._ends(place)
        with self._lock:
            self._listeners = [*self._listeners, listener]
        self._reader.add(place, end)

    def unlisten(self, listener: Callable[[Talk], None]) -> None:
        with self._lock:
            self._listeners = [each for each in self._listeners if each != listener]

    def say(self, talk: Talk) -> None:
        """To every broker and consumer of this prefix that listens."""
        self._send_peers(_TALK, _encode(talk))

    # ------------------------------------------------------------------------------------------ reading

    def _read(self, message: Any) -> None:
        value, topic = message.value() or b"", message.topic()
        try:
            if topic == self._names.bus:
                note = _NOTE.decode(value)
                for inbox in self._inboxes.get(note.to, ()):
                    if message.offset() >= inbox.begin:
                        inbox.put(note)
            elif message.partition() == _BEATS:
                self._heard_beat(_BEAT.decode(value), message.timestamp()[1] / 1000)
            else:
                said = _SAID.decode(value)
                for listener in self._listeners:
                    listener(said)
        except UNREADABLE as error:
            log.warning("%s: a message of a stranger in topic %s is left out: %s", self._url, topic, error)

    def close(self) -> None:
        """Leave as every peer that joined here."""
        for inbox in [inbox for inboxes in list(self._inboxes.values()) for inbox in inboxes]:
            inbox.close()
        self._reader.close()
