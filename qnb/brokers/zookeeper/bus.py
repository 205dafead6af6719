"""The bus on ZooKeeper: presence by ephemeral nodes, a mailbox of sequential nodes for each peer.

ROOT/peers/PEER              ephemeral: present; its data is what the peer says of itself
ROOT/mail/PEER               a mailbox
    /alive                   ephemeral: somebody reads it
    /n0000000017             notes of one post, or a part of them
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from kazoo.exceptions import NodeExistsError, NoNodeError

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.brokers.memory.bus import Gate
from qnb.brokers.zookeeper.batch import children, data_of, delete, exists, failure, put
from qnb.brokers.zookeeper.link import Link, Lost
from qnb.brokers.zookeeper.names import name_of, node_name
from qnb.brokers.zookeeper.presence import Attendance, opened_card
from qnb.errors import BrokerError
from qnb.message import UNREADABLE, Note

# A mailbox that nobody has read for so long belongs to a process that died, or to a laptop that stays shut.
ABANDONED_SECONDS = 900.0
_CLEAN_EVERY = 60.0
_LOOK_SECONDS = 5.0
_NOTES_AT_ONCE = 64
_KEPT_IDS = 4096
_LEFT = b"left"


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """The data of a note's node: part `part` of `parts` of the notes of one post."""

    sender: str
    number: int
    part: int
    parts: int
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_parcel = msgspec.msgpack.Decoder(Parcel).decode
_notes = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


class ZookeeperBus:
    """See Bus of the ports."""

    def __init__(self, link: Link, publisher: str) -> None:
        self.link, self.root, self._sender = link, link.target.root, publisher
        self._numbers = 0
        self._posting = threading.Lock()
        self._clean_at = 0.0
        self._inboxes: list[ZookeeperInbox] = []
        self.attendance = Attendance(link)

    def mailbox(self, peer: str) -> str:
        return f"{self.root}/mail/{node_name(peer)}"

    def join(self, peer: str) -> ZookeeperInbox:
        self._clean()
        inbox = ZookeeperInbox(self, peer)
        self._inboxes = [*(each for each in self._inboxes if not each.closed), inbox]
        return inbox

    # ------------------------------------------------------------ posting

    def post_many(self, notes: Sequence[Note]) -> None:
        by_peer: dict[str, list[tuple[str, bytes]]] = {}
        for note in notes:
            by_peer.setdefault(note.to, []).append((note.kind, note.body))
        creates = [
            self.link.create(f"{self.mailbox(peer)}/n", _encode(parcel), sequence=True)
            for peer, group in by_peer.items()
            for parcel in self._parcels(group)
        ]
        for start in range(0, len(creates), 32):
            # One by one, since a mailbox that is not there takes its notes alone with it. Notes that are sent twice
            # after a broken connection are read once.
            sent = [self.link.commit([each]) for each in creates[start : start + 32]]
            for result in self.link.call_many(sent):
                failed = failure(result)
                if failed is not None and not isinstance(failed[1], NoNodeError):
                    raise self.link.translate(failed[1], f"{self.root}/mail")

    def _parcels(self, group: Sequence[tuple[str, bytes]]) -> list[Parcel]:
        """Notes for one peer in as few parcels as the server's limit allows."""
        room = self.link.target.packet - 4096
        parcels: list[Parcel] = []
        part: list[tuple[str, bytes]] = []
        size = 0
        for note in [*group, None]:
            more = 0 if note is None else len(note[0]) + len(note[1]) + 16
            if part and (note is None or size + more > room):
                parcels += self._split(_encode(part), room)
                part, size = [], 0
            if note is not None:
                part.append(note)
                size += more
        return parcels

    def _split(self, data: bytes, room: int) -> list[Parcel]:
        with self._posting:
            self._numbers += 1
            number = self._numbers
        pieces = [data[start : start + room] for start in range(0, len(data), room)]
        return [Parcel(self._sender, number, part, len(pieces), piece) for part, piece in enumerate(pieces)]

    # ------------------------------------------------------------ presence

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        self._clean()
        found = self.link.call(children(f"{self.root}/peers"))
        if isinstance(found, Exception):
            return []
        nodes = sorted(((name_of(node), node) for node in found), key=lambda pair: pair[0])
        nodes = [(peer, node) for peer, node in nodes if peer.startswith(prefix)]
        if not nodes:
            return []
        answers = self.link.call_many([data_of(f"{self.root}/peers/{node}") for _, node in nodes])
        there, now = [], None
        for (peer, _), answer in zip(nodes, answers, strict=True):
            if isinstance(answer, Exception):
                continue
            card = opened_card(answer[0])
            if card.stamped:
                now = self._server_time() if now is None else now
                if now - answer[1].mtime / 1000 > PRESENCE_SECONDS:
                    continue
            there.append(Presence(peer, card.info))
        return there

    def _server_time(self) -> float:
        stat = self.link.call(lambda client: client.set_async(self.root, b""))
        return time.time() if isinstance(stat, Exception) else float(stat.mtime) / 1000

    # ------------------------------------------------------------ cleaning

    def _clean(self) -> None:
        """Mark mailboxes that nobody reads, and remove those that were marked long ago."""
        now = time.monotonic()
        if now < self._clean_at:
            return
        self._clean_at = now + _CLEAN_EVERY
        found = self.link.call(children(f"{self.root}/mail"))
        if isinstance(found, Exception) or not found:
            return
        paths = [f"{self.root}/mail/{node}" for node in found]
        alive = self.link.call_many([exists(f"{path}/alive") for path in paths])
        left = [path for path, stat in zip(paths, alive, strict=True) if stat is None]
        if not left:
            return
        time_there = self._server_time()
        for path, node in zip(left, self.link.call_many([data_of(path) for path in left]), strict=True):
            if isinstance(node, Exception):
                continue
            if node[0] != _LEFT:
                self.link.post([put(path, _LEFT, node[1].version)])
            elif time_there - node[1].mtime / 1000 > ABANDONED_SECONDS:
                self.empty(path)

    def empty(self, path: str) -> None:
        """Remove a mailbox with what is in it."""
        for _ in range(5):
            found = self.link.call(children(path))
            if isinstance(found, Exception):
                return
            for start in range(0, len(found), 200):
                self.link.call(self.link.commit([delete(f"{path}/{node}") for node in found[start : start + 200]]))
            if failure(self.link.call(self.link.commit([delete(path)]))) is None:
                return
            if found:  # one of them was gone: one by one
                self.link.call_many([self.link.commit([delete(f"{path}/{node}")]) for node in found])

    def close(self) -> None:
        self.attendance.hurry()
        for inbox in self._inboxes:
            inbox.close()
        self.attendance.close()


class ZookeeperInbox:
    """See Inbox of the ports.

    Notes are read into `_notes` and handed out from there. Nothing that Ctrl-C can come between changes both what is
    here and what is known to be here; nodes are removed from the server after that.
    """

    def __init__(self, bus: ZookeeperBus, peer: str) -> None:
        self.peer = peer
        self.closed = False
        self._bus, self._link, self._path = bus, bus.link, bus.mailbox(peer)
        self._gate = Gate()
        self._woken = False
        self._events, self._seen = 1, 0  # what the watch told, and up to where it was looked at
        self._look_at = 0.0
        self._session: int | None = None
        self._notes: list[Note] = []
        self._at = 0
        self._last = ""
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}
        self._ids: OrderedDict[tuple[str, int], None] = OrderedDict()
        bus.empty(self._path)
        self._sign_in()
        self._link.listen(self._connection)

    def _sign_in(self) -> None:
        """Say that this mailbox is read; make it when it is not there."""
        create = self._link.create
        session = self._link.session_id
        alive = create(f"{self._path}/alive", ephemeral=True)
        failed = failure(self._link.call(self._link.commit([put(self._path, b""), alive])))
        if failed is not None and isinstance(failed[1], NoNodeError):
            self._link.call(lambda client: client.ensure_path_async(f"{self._bus.root}/mail", self._link.target.acl))
            failed = failure(self._link.call(self._link.commit([create(self._path), alive])))
            self._last = ""
        if failed is not None and not isinstance(failed[1], NodeExistsError):
            raise self._link.translate(failed[1], self._path)
        # That of an earlier session may stay a while yet: then the next look comes here again.
        self._session = session if failed is None else None

    def _watch(self, event: Any) -> None:
        self._events += 1
        self._gate.open()

    def _connection(self) -> None:
        self._events += 1
        self._gate.open()

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        self._fill(time.monotonic() + timeout)
        at = self._at
        end = min(at + limit, len(self._notes))
        # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
        notes = self._notes[at:end]
        self._at = end
        return notes

    def _ended(self) -> bool:
        """Whether another thread has closed it meanwhile."""
        return self.closed

    def _fill(self, deadline: float) -> None:
        """Until there are notes, or no time."""
        if self._at >= 1000:
            del self._notes[: self._at]
            self._at = 0
        while self._at >= len(self._notes) and not self.closed:
            now = time.monotonic()
            if self._events != self._seen or now >= self._look_at:
                try:
                    self._look()
                except Lost:
                    self._events += 1
                    if self._ended():
                        return
                    self._link.check()
                    self._gate.wait(min(0.2, max(0.0, deadline - now)))
                if self._at < len(self._notes):
                    return
                now = time.monotonic()
            if self._woken or now >= deadline:
                self._woken = False
                return
            if self._events == self._seen:
                self._gate.wait(min(deadline, self._look_at) - now)

    def _look(self) -> None:
        if not self._link.connected:
            raise Lost("no connection")
        if self._session != self._link.session_id:
            self._sign_in()
        events = self._events
        [found] = self._link.attempt([children(self._path, self._watch)])
        if isinstance(found, Exception):  # removed: by whoever cleans, or with the whole tree
            self._session = None
            self._events += 1
            return
        names = sorted(name for name in found if name[0] == "n")
        old = [name for name in names if name <= self._last]
        new = names[len(old) :][:_NOTES_AT_ONCE]
        data = self._link.attempt([data_of(f"{self._path}/{name}") for name in new]) if new else []
        self._take_in(new, data)
        for start in range(0, len(old), 200):
            self._link.post([delete(f"{self._path}/{name}") for name in old[start : start + 200]])
        if new:
            self._link.post([delete(f"{self._path}/{name}") for name in new])
        if len(names) == len(old) + len(new):
            self._seen = events
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def _take_in(self, names: Sequence[str], answers: Sequence[Any]) -> None:
        """Put together what came in parts, leave out what came twice, and keep the rest."""
        notes = list(self._notes)
        parts = {key: dict(part) for key, part in self._parts.items()}
        ids = self._ids.copy() if names else self._ids
        for answer in answers:
            if not isinstance(answer, Exception):
                with suppress(*UNREADABLE):  # put there by something else than qnb
                    notes += self._opened(_parcel(answer[0]), parts, ids)
        while len(ids) > _KEPT_IDS:
            ids.popitem(last=False)
        last = names[-1] if names else self._last
        self._parts, self._ids, self._last, self._notes = parts, ids, last, notes

    def _opened(
        self, parcel: Parcel, parts: dict[tuple[str, int], dict[int, bytes]], ids: OrderedDict[tuple[str, int], None]
    ) -> list[Note]:
        key = parcel.sender, parcel.number
        if key in ids:
            return []
        data = parcel.data
        if parcel.parts > 1:
            if not 0 <= parcel.part < parcel.parts:
                return []  # put there by something else than qnb
            here = parts.setdefault(key, {})
            here[parcel.part] = data
            if len(here) < parcel.parts:
                return []
            data = b"".join(here[number] for number in range(parcel.parts))
            del parts[key]
        ids[key] = None
        return [Note(self.peer, kind, body) for kind, body in _notes(data)]

    def beat(self, info: bytes = b"") -> None:
        if not self.closed:
            self._bus.attendance.beat(self.peer, self._presence, info)

    @property
    def _presence(self) -> str:
        return f"{self._bus.root}/peers/{node_name(self.peer)}"

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._gate.open()
        self._link.unlisten(self._connection)
        self._bus.attendance.leave(self._presence)
        with suppress(BrokerError):  # the server is away: whoever cleans removes it
            self._bus.empty(self._path)
