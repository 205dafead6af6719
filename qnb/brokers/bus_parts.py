"""What travels through the mailboxes of a QueueBus: pings, pongs, and notes in numbered parts.

Servers of queues may deliver twice and out of order, and take messages up to a limit. A poster numbers what it sends
to each mailbox; the reader puts it in order, leaves out what it has had, and joins what was cut.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from qnb.message import UNREADABLE, Note

PING, PONG, PART = range(3)
# How long a missing part is waited for, once later ones are there. A stream that is new may have begun elsewhere.
GAP_SECONDS, NEW_GAP_SECONDS = 1.0, 0.4
# Room for the fields around the data of a part.
_OVERHEAD = 64
_STREAMS_KEPT = 5000

_encode = msgspec.msgpack.encode


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Is anybody there? The answer goes to mailbox `reply_to`."""

    kind: int
    ticket: bytes
    reply_to: str


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """Somebody is. `present` when it has beaten within PRESENCE_SECONDS."""

    kind: int
    ticket: bytes
    peer: str
    present: bool
    info: bytes


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Number `number` of a stream: piece `piece` of a bundle of notes, and whether `more` pieces follow."""

    kind: int
    stream: bytes
    number: int
    piece: int
    more: bool
    data: bytes


_notes = msgspec.msgpack.Decoder(list[tuple[str, bytes]])
_of_kind = {kind: msgspec.msgpack.Decoder(form) for kind, form in ((PING, Ping), (PONG, Pong), (PART, Part))}


def read(data: bytes) -> Any:
    """A Ping, Pong or Part; None when it is neither, as anybody may write into a queue."""
    try:
        # An array of 3 to 6 fields, and the kind, a small number, comes first.
        return _of_kind[data[1]].decode(data)
    except (KeyError, IndexError, *UNREADABLE):
        return None


def ping(ticket: bytes, reply_to: str) -> bytes:
    """A Ping, encoded."""
    return _encode(Ping(PING, ticket, reply_to))


def pong(ticket: bytes, peer: str, present: bool, info: bytes) -> bytes:
    """A Pong, encoded."""
    return _encode(Pong(PONG, ticket, peer, present, info))


class Outgoing:
    """Numbers what one bus posts, mailbox by mailbox. Safe from any thread."""

    def __init__(self, limit: int) -> None:
        self._room = max(1, limit - _OVERHEAD)
        self._lock = threading.Lock()
        self._streams: dict[str, tuple[bytes, int]] = {}

    def pack(self, notes: Sequence[Note]) -> list[tuple[str, bytes]]:
        """(mailbox, message) pairs that carry these notes."""
        by_peer: dict[str, list[tuple[str, bytes]]] = {}
        for note in notes:
            by_peer.setdefault(note.to, []).append((note.kind, note.body))
        with self._lock:
            return [(to, part) for to, group in by_peer.items() for part in self._parts(to, group)]

    def forget(self, peers: Iterable[str]) -> None:
        """What is posted to these next begins a new stream: the last one may have a hole."""
        with self._lock:
            for peer in peers:
                self._streams.pop(peer, None)

    def _parts(self, to: str, group: Sequence[tuple[str, bytes]]) -> list[bytes]:
        stream, number = self._streams.pop(to) if to in self._streams else (os.urandom(8), 0)
        parts = []
        for bundle in self._bundles(group):
            starts = range(0, len(bundle), self._room)
            for piece, start in enumerate(starts):
                data = bundle[start : start + self._room]
                parts.append(_encode(Part(PART, stream, number, piece, piece + 1 < len(starts), data)))
                number += 1
        self._streams[to] = (stream, number)  # last in the dict: the first is the one unused for longest
        if len(self._streams) > _STREAMS_KEPT:
            del self._streams[next(iter(self._streams))]
        return parts

    def _bundles(self, group: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
        """As many notes together as there is room for, at least one."""
        some: list[tuple[str, bytes]] = []
        size = 0
        for kind, body in group:
            more = len(kind) + len(body) + 12
            if some and size + more > self._room:
                yield _encode(some)
                some, size = [], 0
            some.append((kind, body))
            size += more
        yield _encode(some)


class _Stream:
    """The parts of one poster, put in order."""

    def __init__(self) -> None:
        self.next = 0
        self.early: dict[int, Part] = {}
        self.pieces: list[bytes] = []
        self.waits_until = 0.0


class Incoming:
    """Puts together what the reader of one mailbox gets. Used by that thread alone."""

    def __init__(self, peer: str, *, ordered: bool) -> None:
        self._peer, self._ordered = peer, ordered
        self._streams: dict[bytes, _Stream] = {}
        self._gaps: set[bytes] = set()

    def take(self, part: Part) -> list[Note]:
        """The notes that this part makes complete."""
        stream = self._streams.pop(part.stream, None)
        fresh = stream is None
        stream = stream or _Stream()
        self._streams[part.stream] = stream
        if len(self._streams) > _STREAMS_KEPT:
            oldest = next(iter(self._streams))
            del self._streams[oldest]
            self._gaps.discard(oldest)
        if part.number < stream.next:
            return []
        stream.early[part.number] = part
        if stream.next not in stream.early and part.stream not in self._gaps:
            self._gaps.add(part.stream)
            wait = 0.0 if self._ordered else NEW_GAP_SECONDS if fresh else GAP_SECONDS
            stream.waits_until = time.monotonic() + wait
        return self._complete(part.stream, stream)

    def overdue(self) -> list[Note]:
        """The notes behind parts that were waited for long enough."""
        now = time.monotonic()
        notes: list[Note] = []
        for name in [name for name in self._gaps if self._streams[name].waits_until <= now]:
            stream = self._streams[name]
            stream.next = min(stream.early)
            stream.pieces.clear()
            stream.waits_until = now + GAP_SECONDS
            notes += self._complete(name, stream)
        return notes

    @property
    def patience(self) -> float | None:
        """Seconds until overdue() may have something; None when nothing is missing."""
        if not self._gaps:
            return None
        return max(0.0, min(self._streams[name].waits_until for name in self._gaps) - time.monotonic())

    def _complete(self, name: bytes, stream: _Stream) -> list[Note]:
        notes: list[Note] = []
        while (part := stream.early.pop(stream.next, None)) is not None:
            stream.next += 1
            if part.piece != len(stream.pieces):  # the beginning of this bundle is lost
                stream.pieces.clear()
                continue
            stream.pieces.append(part.data)
            if not part.more:
                notes += self._open(b"".join(stream.pieces))
                stream.pieces.clear()
        if not stream.early:
            self._gaps.discard(name)
        return notes

    def _open(self, bundle: bytes) -> list[Note]:
        try:
            return [Note(self._peer, kind, body) for kind, body in _notes.decode(bundle)]
        except UNREADABLE:
            return []
