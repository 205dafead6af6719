"""The bus of the embedded file: mailboxes and presence as tables."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Sequence

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.brokers.sqlite.bell import Bells, topic_of
from qnb.brokers.sqlite.file import Database
from qnb.errors import BrokerUnavailable
from qnb.message import Note

# A mailbox that nobody has read for so long belongs to a process that died.
ABANDONED_SECONDS = 600.0
TOUCH_SECONDS = 60.0
# Notes that are read are removed in bulk, when there are so many or when there is nothing else to do.
FORGET_NOTES = 500


class SqliteBus:
    """Presence and mailboxes among the processes that share the file."""

    def __init__(self, database: Database, bells: Bells, prefix: str) -> None:
        self._database = database
        self._bells = bells
        self._prefix = prefix
        self._inboxes: list[SqliteInbox] = []
        self._insert = (
            f"INSERT INTO {prefix}notes(peer, id, kind, body) "
            f"SELECT ?1, coalesce((SELECT max(id) FROM {prefix}notes WHERE peer = ?1), 0) + 1, ?2, ?3 "
            f"WHERE EXISTS (SELECT 1 FROM {prefix}peers WHERE peer = ?1)"
        )

    def join(self, peer: str) -> SqliteInbox:
        inbox = SqliteInbox(self._database, self._bells, self._prefix, peer)
        self._inboxes = [*(each for each in self._inboxes if not each.closed), inbox]
        return inbox

    def post_many(self, notes: Sequence[Note]) -> None:
        if notes:
            with self._database.lock, self._database.transaction as connection:
                self.write(connection, notes)
            self.ring(notes)

    def write(self, connection: sqlite3.Connection, notes: Sequence[Note]) -> None:
        """Post within a transaction; ring after it."""
        if len(notes) == 1:
            connection.execute(self._insert, (notes[0].to, notes[0].kind, notes[0].body))
        elif notes:
            connection.executemany(self._insert, [(note.to, note.kind, note.body) for note in notes])

    def ring(self, notes: Sequence[Note]) -> None:
        """Wake the peers that notes are for."""
        for peer in {note.to for note in notes}:
            self._bells.ring(topic_of("peer", peer))

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        rows = self._database.read(
            f"SELECT peer, info FROM {self._prefix}peers WHERE present_until > ? ORDER BY peer", (time.time(),)
        )
        return [Presence(peer, info) for peer, info in rows if peer.startswith(prefix)]

    def close(self) -> None:
        """Leave as every peer that joined here."""
        for inbox in self._inboxes:
            inbox.close()


class SqliteInbox:
    """The mailbox of one peer. Notes are read without a lock on the file, and removed later."""

    def __init__(self, database: Database, bells: Bells, prefix: str, peer: str) -> None:
        self.peer = peer
        self._database = database
        self._tables = prefix
        self._mailbox = secrets.randbits(62)
        self._select = f"SELECT id, kind, body FROM {prefix}notes WHERE peer = ? AND id > ? ORDER BY id LIMIT ?"
        self._last = 0
        self._unforgotten = 0
        self._touched_at = 0.0
        self._seen: tuple[int, int] | None = None
        self._woken = False
        self.closed = False
        self._bell = bells.hang([topic_of("peer", peer)])
        self._sign_in()

    def _sign_in(self) -> None:
        """Say that this mailbox is read; clear away those that are not."""
        now, tables = time.time(), self._tables
        with self._database.lock, self._database.transaction as connection:
            known = connection.execute(
                f"SELECT 1 FROM {tables}peers WHERE peer = ? AND mailbox = ?", (self.peer, self._mailbox)
            ).fetchone()
            if known is None:  # new, or swept while this process slept
                connection.execute(f"DELETE FROM {tables}notes WHERE peer = ?", (self.peer,))
                self._last = 0
            connection.execute(
                f"INSERT INTO {tables}peers(peer, mailbox, read_at) VALUES(?, ?, ?) "
                "ON CONFLICT(peer) DO UPDATE SET mailbox = excluded.mailbox, read_at = excluded.read_at",
                (self.peer, self._mailbox, now),
            )
            gone = connection.execute(
                f"DELETE FROM {tables}peers WHERE read_at < ? RETURNING peer", (now - ABANDONED_SECONDS,)
            ).fetchall()
            connection.executemany(f"DELETE FROM {tables}notes WHERE peer = ?", gone)
        self._touched_at = now

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        notes, last = self._wait(limit, time.monotonic() + timeout)
        # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
        self._last = last
        return notes

    def _wait(self, limit: int, end: float) -> tuple[list[Note], int]:
        """The notes that are next, and the number of the last of them."""
        looks, armed, look = 0, False, True
        try:
            while True:
                notes, last = self._read(limit) if look else ([], self._last)
                now = time.monotonic()
                if notes or self._woken or self.closed or now >= end:
                    self._woken = False
                    return notes, last
                if not armed:
                    self._bell.arm()  # and look once more: a note may have come before anyone could ring for it
                    armed = look = True
                    continue
                self._bell.wait(min(end - now, self._bell.patience(looks)))
                if self._bell.disarm():
                    looks, armed, look = 0, False, True
                else:
                    self._bell.arm()
                    looks, look = looks + 1, self._changed()
        except BrokerUnavailable:
            if self.closed:  # by another thread, in this moment
                return [], self._last
            raise
        finally:
            if armed:
                self._bell.disarm()

    def _changed(self) -> bool:
        """Whether anyone has written since this was asked last: a bell may have got lost."""
        if self._unforgotten:
            self._forget()
        seen, self._seen = self._seen, self._database.version()
        return seen != self._seen

    def _read(self, limit: int) -> tuple[list[Note], int]:
        if time.time() - self._touched_at > TOUCH_SECONDS:
            self._sign_in()
        if self._unforgotten >= FORGET_NOTES:
            self._forget()
        rows = self._database.read(self._select, (self.peer, self._last, limit))
        self._unforgotten += len(rows)
        last = rows[-1][0] if rows else self._last
        return [Note(self.peer, kind, body) for _, kind, body in rows], last

    def _forget(self) -> None:
        self._unforgotten = 0
        # The newest stays, so that the next one's number is higher.
        with self._database.lock, self._database.transaction as connection:
            connection.execute(f"DELETE FROM {self._tables}notes WHERE peer = ? AND id < ?", (self.peer, self._last))

    def beat(self, info: bytes = b"") -> None:
        with self._database.lock, self._database.transaction as connection:
            done = connection.execute(
                f"UPDATE {self._tables}peers SET present_until = ?, info = ? WHERE peer = ? AND mailbox = ?",
                (time.time() + PRESENCE_SECONDS, info, self.peer, self._mailbox),
            )
            if not done.rowcount and not self.closed:
                self._touched_at = 0.0  # swept while this process slept: the next read signs in anew

    def wake(self) -> None:
        self._woken = True
        self._bell.wake()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._bell.wake()
        with self._database.lock, self._database.transaction as connection:
            gone = connection.execute(
                f"DELETE FROM {self._tables}peers WHERE peer = ? AND mailbox = ?", (self.peer, self._mailbox)
            )
            if gone.rowcount:
                connection.execute(f"DELETE FROM {self._tables}notes WHERE peer = ?", (self.peer,))
        self._bell.close()
