"""The bus of a table: notes are rows, and so is who is there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from msgspec import msgpack

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.message import Note

if TYPE_CHECKING:
    from qnb.brokers.table import Change, Table


class TableInbox:
    """The mailbox of one peer. What a receive gave out is removed by the next: a Ctrl-C in the middle loses nothing."""

    def __init__(self, table: Table, peer: str, poll: float) -> None:
        self.peer = peer
        self._table, self._poll = table, poll
        self._id = os.urandom(6).hex()
        self._front = f"n/{quote(peer, safe='')}/"
        self._given: list[Change] = []
        self._woken = self._closed = False
        table.swap([(key, row, None) for key, row in table.scan(self._front)])
        self._present(0.0, b"", join=True)

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        end = time.monotonic() + timeout
        if self._given:
            self._table.swap(self._given)
            self._given = []
        while True:
            rows = [] if self._closed else self._table.scan(self._front, limit)
            notes = [Note(self.peer, *msgpack.decode(row)) for _, row in rows]
            given: list[Change] = [(key, row, None) for key, row in rows]
            if notes or self._woken or self._closed or time.monotonic() >= end:
                self._woken = False
                # Nothing is called from here on, so that no Ctrl-C comes in between.
                self._given = given
                return notes
            time.sleep(min(self._poll, max(0.0, end - time.monotonic())))

    def beat(self, info: bytes = b"") -> None:
        self._present(time.time() + PRESENCE_SECONDS, info)

    def _present(self, until: float, info: bytes, join: bool = False) -> None:
        """Write who is there, unless somebody else has joined under this name since."""
        key = f"p/{quote(self.peer, safe='')}"
        old = next((row for found, row in self._table.scan(key) if found == key), None)
        if join or old is None or msgpack.decode(old)[0] == self._id:
            self._table.swap([(key, old, msgpack.encode((self._id, until, info)))])

    def wake(self) -> None:
        self._woken = True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        key = f"p/{quote(self.peer, safe='')}"
        for found, row in self._table.scan(key):
            if found == key and msgpack.decode(row)[0] == self._id:
                self._table.swap([(key, row, None)])
                self._table.swap([(note, body, None) for note, body in self._table.scan(self._front)])


class TableBus:
    """Mailboxes and presence among the brokers of one table."""

    def __init__(self, table: Table, poll: float) -> None:
        self._table, self._poll = table, poll

    def join(self, peer: str) -> TableInbox:
        return TableInbox(self._table, peer, self._poll)

    def post_many(self, notes: Sequence[Note]) -> None:
        from qnb.brokers.table import number

        if notes:
            joined = {key.partition("/")[2] for key, _ in self._table.scan("p/")}
            names = [(quote(note.to, safe=""), note) for note in notes]
            self._table.swap(
                [
                    (f"n/{name}/{number()}", None, msgpack.encode((note.kind, note.body)))
                    for name, note in names
                    if name in joined
                ]
            )

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        now = time.time()
        found = [(unquote(key.partition("/")[2]), *msgpack.decode(row)[1:]) for key, row in self._table.scan("p/")]
        return [Presence(peer, info) for peer, until, info in sorted(found) if until > now and peer.startswith(prefix)]
