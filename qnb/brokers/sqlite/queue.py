"""The statements on queues: every move of a message between ready, later, dead and gone, in someone's transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.message import Envelope

# A body up to this size stays in its message's row, which every move writes anew; a larger one gets a row of its own.
INLINE_BYTES = 900
# A queue that is published to is among the queues. Said again this often, as another process may have removed it.
NAME_SECONDS = 1.0

Row = tuple[int, int, str, int, bytes | None]  # rank, id, queue, deliveries, body


class QueueTables:
    """The queues of one file with one prefix. Every method wants to be inside a transaction."""

    def __init__(self, prefix: str) -> None:
        self._named: dict[str, float] = {}
        ready, later, self._bodies = f"{prefix}ready", f"{prefix}later", f"{prefix}bodies"
        self._ready, self._later, self._dead, self._queues = ready, later, f"{prefix}dead", f"{prefix}queues"
        self._name = f"INSERT OR IGNORE INTO {prefix}queues(name, lease) VALUES(?, {DEFAULT_LEASE})"
        self._to_ready = f"INSERT INTO {ready}(queue, rank, id, deliveries, body) VALUES(?, ?, ?, ?, ?)"
        self._to_later = (
            f"INSERT INTO {later}(due, id, held, queue, rank, deliveries, body) VALUES(?, ?, ?, ?, ?, ?, ?)"
        )
        self._to_bodies = f"INSERT INTO {self._bodies}(id, body) VALUES(?, ?)"
        self._first = f"SELECT rank, id, queue, deliveries, body FROM {ready} WHERE queue = ? ORDER BY rank, id LIMIT ?"
        self._cut = f"DELETE FROM {ready} WHERE queue = ? AND rank = ? AND id <= ?"
        self._cut_above = f"DELETE FROM {ready} WHERE queue = ? AND rank < ?"
        self.select_body = f"SELECT body FROM {self._bodies} WHERE id = ?"
        self._lease = f"FROM {later} WHERE due = ? AND id = ?"

    def publish(self, connection: sqlite3.Connection, envelopes: Sequence[Envelope]) -> None:
        """Put envelopes in."""
        now, number = time.time(), time.time_ns()
        ready: list[tuple[Any, ...]] = []
        later: list[tuple[Any, ...]] = []
        for envelope in envelopes:
            number += 1
            body: bytes | None = envelope.body
            if len(envelope.body) > INLINE_BYTES:
                connection.execute(self._to_bodies, (number, envelope.body))
                body = None
            if envelope.delay > 0:
                later.append((now + envelope.delay, number, 0, envelope.queue, -envelope.priority, 0, body))
            else:
                ready.append((envelope.queue, -envelope.priority, number, 0, body))
        _insert(connection, self._to_ready, ready)
        _insert(connection, self._to_later, later)
        for name in {envelope.queue for envelope in envelopes}:
            if now > self._named.get(name, 0.0):
                self._named[name] = now + NAME_SECONDS
                connection.execute(self._name, (name,))

    def claim(self, connection: sqlite3.Connection, queues: Sequence[str], limit: int, until: float) -> list[Row]:
        """Move the best ready messages of these queues onto a lease."""
        rows: list[Row] = []
        for queue in queues:
            rows += connection.execute(self._first, (queue, limit)).fetchall()
        if len(queues) > 1:
            rows.sort(key=_rank_and_id)
            del rows[limit:]
        last = {row[2]: row for row in rows}  # of each queue all up to this one
        for queue, (rank, key, *_) in last.items():
            connection.execute(self._cut, (queue, rank, key))
            if rows[0][0] != rank:
                connection.execute(self._cut_above, (queue, rank))
        _insert(connection, self._to_later, [(until, row[1], 1, row[2], row[0], row[3] + 1, row[4]) for row in rows])
        return rows

    def promote(self, connection: sqlite3.Connection, now: float) -> int:
        """Make ready what has fallen due, of any queue; how many."""
        rows = connection.execute(
            f"SELECT queue, rank, id, deliveries, body FROM {self._later} WHERE due <= ?", (now,)
        ).fetchall()
        if rows:
            connection.executemany(self._to_ready, rows)
            connection.execute(f"DELETE FROM {self._later} WHERE due <= ?", (now,))
        return len(rows)

    def peek_statement(self, queues: int) -> str:
        """A query: when the next message falls due, and whether one of so many queues has a ready one."""
        some = f"SELECT 1 FROM {self._ready} WHERE queue IN ({', '.join('?' * queues)})"
        return f"SELECT (SELECT min(due) FROM {self._later}), EXISTS ({some})"

    def ack(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery]) -> None:
        """Remove messages whose lease is not over."""
        now = time.time()
        leases = [delivery.token for delivery in deliveries]
        if any(large for _, _, large in leases):
            for due, key, large in leases:
                if due > now and connection.execute(f"DELETE {self._lease}", (due, key)).rowcount and large:
                    connection.execute(f"DELETE FROM {self._bodies} WHERE id = ?", (key,))
        else:
            _insert(connection, f"DELETE {self._lease}", [(due, key) for due, key, _ in leases if due > now])

    def _end(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery]) -> list[Row]:
        """End leases that are not over; the messages."""
        now = time.time()
        rows: list[Row] = []
        for due, key, _ in [delivery.token for delivery in deliveries]:
            if due > now:
                rows += connection.execute(
                    f"SELECT rank, id, queue, deliveries, body {self._lease}", (due, key)
                ).fetchall()
                connection.execute(f"DELETE {self._lease}", (due, key))
        return rows

    def release(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery], delay: float) -> None:
        """Back to ready, or to later; the delivery is not counted."""
        rows = self._end(connection, deliveries)
        if delay > 0:
            due = time.time() + delay
            again = [(due, key, 0, queue, rank, count - 1, body) for rank, key, queue, count, body in rows]
            connection.executemany(self._to_later, again)
        else:
            connection.executemany(
                self._to_ready, [(queue, rank, key, count - 1, body) for rank, key, queue, count, body in rows]
            )

    def reject(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery], reason: str) -> None:
        """To the dead letters."""
        for _, key, queue, _, body in self._end(connection, deliveries):
            if body is None:
                body = connection.execute(self.select_body, (key,)).fetchone()[0]
                connection.execute(f"DELETE FROM {self._bodies} WHERE id = ?", (key,))
            connection.execute(f"INSERT INTO {self._dead}(queue, reason, body) VALUES(?, ?, ?)", (queue, reason, body))

    def extend(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery], seconds: float) -> None:
        """New ends for leases that are not over. The token changes here, where no one else can be settling it."""
        now = time.time()
        for delivery in deliveries:
            due, key, large = delivery.token
            if due <= now:
                continue
            moved = connection.execute(
                f"UPDATE {self._later} SET due = ? WHERE due = ? AND id = ?", (now + seconds, due, key)
            )
            if moved.rowcount:
                delivery.token = (now + seconds, key, large)

    def purge(self, connection: sqlite3.Connection, queue: str, *, held: bool = False) -> int:
        """Drop what waits, and with `held` what is on a lease too."""
        later = f"FROM {self._later} WHERE queue = ? AND (? OR NOT held OR due <= ?)"
        which = (queue, held, time.time())
        connection.execute(
            f"DELETE FROM {self._bodies} WHERE id IN (SELECT id FROM {self._ready} WHERE queue = ? AND body IS NULL)",
            (queue,),
        )
        connection.execute(f"DELETE FROM {self._bodies} WHERE id IN (SELECT id {later} AND body IS NULL)", which)
        dropped = connection.execute(f"DELETE FROM {self._ready} WHERE queue = ?", (queue,)).rowcount
        return dropped + connection.execute(f"DELETE {later}", which).rowcount

    def remove(self, connection: sqlite3.Connection, queue: str) -> None:
        """Everything of a queue."""
        self._named.pop(queue, None)
        self.purge(connection, queue, held=True)
        connection.execute(f"DELETE FROM {self._dead} WHERE queue = ?", (queue,))
        connection.execute(f"DELETE FROM {self._queues} WHERE name = ?", (queue,))


def _rank_and_id(row: Row) -> tuple[int, int]:
    return row[:2]


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    if len(rows) == 1:  # half the time of executemany
        connection.execute(statement, rows[0])
    elif rows:
        connection.executemany(statement, rows)
