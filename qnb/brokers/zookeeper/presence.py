"""Presence on ZooKeeper: an ephemeral node for each peer, on a session that is short."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import msgspec
from kazoo.exceptions import NodeExistsError, NoNodeError

from qnb.brokers.base import PRESENCE_SECONDS
from qnb.brokers.zookeeper.batch import delete, failure, put
from qnb.brokers.zookeeper.link import Link
from qnb.errors import BrokerError
from qnb.message import UNREADABLE

# Of the session that presence hangs on: short enough for a dead peer to be gone in PRESENCE_SECONDS.
PRESENCE_SESSION = 2.0
_STAMP_EVERY = 1.0


class Card(msgspec.Struct, frozen=True, array_like=True):
    """The data of a presence node. `stamped`: it is renewed each second, since the server keeps sessions for longer."""

    info: bytes
    stamped: bool = False


_encode = msgspec.msgpack.Encoder().encode
_card = msgspec.msgpack.Decoder(Card).decode


def opened_card(data: bytes) -> Card:
    """What somebody else than qnb has put there is all info."""
    try:
        return _card(data)
    except UNREADABLE:
        return Card(data)


class Attendance:
    """The peers of this process that are present: who beats, and a thread that takes away those who stop."""

    def __init__(self, link: Link) -> None:
        self._main, self._target = link, link.target
        self._link: Link | None = None
        self._lock = threading.Condition()
        self._present: dict[str, tuple[float, bytes, int | None, float]] = {}  # until, info, session, written at
        self._thread: threading.Thread | None = None
        self._closed = False
        self._writing = threading.Lock()

    def _open(self) -> Link:
        """The link that presence hangs on: a session of its own, unless the broker's is as short."""
        if self._link is None:
            short = self._main.negotiated <= PRESENCE_SESSION + 0.5
            self._link = self._main if short else Link(self._target, PRESENCE_SESSION)
        return self._link

    def beat(self, peer: str, path: str, info: bytes) -> None:
        with self._writing:
            link = self._open()
            now = time.monotonic()
            stamped = link.negotiated > PRESENCE_SECONDS
            with self._lock:
                known = self._present.get(path)
            fresh = known is not None and known[2] == link.session_id
            if not fresh or known is None or known[1] != info or (stamped and now - known[3] >= _STAMP_EVERY):
                self._write(link, path, _encode(Card(info, stamped)), fresh)
                written = now
            else:
                written = known[3]
            with self._lock:
                if self._closed:
                    return
                self._present[path] = now + PRESENCE_SECONDS, info, link.session_id, written
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="qnb-zookeeper-presence", daemon=True)
                    self._thread.start()
                self._lock.notify_all()

    @staticmethod
    def _write(link: Link, path: str, card: bytes, fresh: bool) -> None:
        """Patience is short: the caller has leases to keep too, and beats again in a second."""
        if fresh and failure(link.call(link.commit([put(path, card)]), 1.0)) is None:
            return
        create = link.create(path, card, ephemeral=True)
        failed = failure(link.call(link.commit([create]), 1.0))
        if failed is not None and isinstance(failed[1], NodeExistsError):  # of a session that is over
            failed = failure(link.call(link.commit([delete(path), create]), 1.0))
        if failed is not None and isinstance(failed[1], NoNodeError):
            link.call(lambda client: client.ensure_path_async(path.rpartition("/")[0], link.target.acl))
            failed = failure(link.call(link.commit([create]), 1.0))
        if failed is not None:
            raise link.translate(failed[1], path)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                over = [path for path, (until, *_) in self._present.items() if until <= now]
                if not over:
                    soonest = min((until for until, *_ in self._present.values()), default=now + 3600)
                    self._lock.wait(soonest - now)
                    continue
                for path in over:
                    del self._present[path]
            for path in over:
                with suppress(BrokerError):  # the server is away: it ends the session
                    self._remove(path)

    def _remove(self, path: str) -> None:
        link = self._link
        if link is not None:
            with self._writing:
                if path not in self._present:
                    link.call(link.commit([delete(path)]), min(1.0, link.patience))

    def hurry(self) -> None:
        if self._link is not None:
            self._link.hurry()

    def leave(self, path: str) -> None:
        with self._lock:
            known = self._present.pop(path, None)
        if known is not None:
            with suppress(BrokerError):
                self._remove(path)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._link is not None and self._link is not self._main:
            self._link.close()
