"""Taking messages from the embedded file on leases."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence

from qnb.brokers.base import Delivery
from qnb.brokers.bell import Bells, topic_of
from qnb.brokers.sqlite_file import Database

# How late an expired lease or a delay may be noticed while there is other work.
PROMOTE_SECONDS = 0.05
_NEVER = float("inf")


def claim_statement(prefix: str, queues: int) -> str:
    """The claim: the best ready messages of some queues get this lease. Values: due, token, (queue, limit)…, limit."""
    ready = (
        f"SELECT id, priority FROM {prefix}messages WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT ?"
    )
    each = " UNION ALL ".join([f"SELECT * FROM ({ready})"] * queues)
    best = f"SELECT id FROM ({each}) ORDER BY priority DESC, id LIMIT ?" if queues > 1 else f"SELECT id FROM ({ready})"
    return (
        f"UPDATE {prefix}messages SET deliveries = deliveries + 1, due = ?, token = ? WHERE id IN ({best}) "
        "RETURNING priority, id, queue, deliveries, body"
    )


class SqliteConsumer:
    """Receives in one thread and settles in another; a settled delivery makes room at once."""

    def __init__(
        self, database: Database, bells: Bells, prefix: str, queues: Sequence[str], prefetch: int, lease: float
    ) -> None:
        self.lease = lease
        self._database = database
        self._bells = bells
        self._prefix = prefix
        self._queues = queues
        self._prefetch = prefetch
        self._topics = [topic_of("queue", queue) for queue in queues]
        self._bell = bells.hang(self._topics)
        self._claim_statement = claim_statement(prefix, len(queues))
        self._mine = "WHERE id = ? AND token = ? AND due > ?"
        self._lock = threading.Lock()
        self._held: dict[int, tuple[int, float]] = {}  # id → token, end of the lease
        self._seen: tuple[int, int] | None = None  # the version of the file in which nothing was ready
        self._next_due = _NEVER
        self._promote_at = 0.0
        self._full = False
        self._woken = False
        self._closed = False

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        looks, armed = 0, False
        try:
            while not self._closed:
                room = min(limit, self._room())
                taken = self._take(room) if room > 0 else []
                now = time.monotonic()
                if taken or self._woken or now >= end:
                    return taken
                if not armed:
                    self._bell.arm()  # and look once more: a message may have come before anyone could ring for it
                    armed = True
                    continue
                until = self._next_due if room > 0 else self._next_end()
                self._bell.wait(min(end - now, max(until - time.time(), 0.0), self._bell.patience(looks)))
                looks = 0 if self._bell.disarm() else looks + 1
                self._bell.arm()
            return []
        finally:
            self._woken = False
            if armed and self._bell.disarm():
                for topic in self._topics:  # rung, and gone before it looked: someone else's turn
                    self._bells.ring(topic)

    def _room(self) -> int:
        with self._lock:
            room = self._prefetch - len(self._held)
            if room <= 0:
                now = time.time()
                self._held = {key: held for key, held in self._held.items() if held[1] > now}
                room = self._prefetch - len(self._held)
            self._full = room <= 0
            return room

    def _next_end(self) -> float:
        with self._lock:
            return min((until for _, until in self._held.values()), default=_NEVER)

    def _take(self, room: int) -> list[Delivery]:
        if self._seen is not None and time.time() < self._next_due and self._database.version() == self._seen:
            return []
        rows, token, until = self._claim(room)
        if not rows:
            return []
        rows.sort(key=lambda row: (-row[0], row[1]))
        with self._lock:
            for row in rows:
                self._held[row[1]] = (token, until)
        if len(rows) == room:  # there may be more, and a bell is only for one
            for topic in self._topics:
                self._bells.ring(topic)
        taken = []
        for _, key, queue, deliveries, body in rows:
            if body is None:
                found = self._database.read(f"SELECT body FROM {self._prefix}bodies WHERE id = ?", (key,))
                if not found:  # its queue was removed in this moment
                    continue
                body = found[0][0]
            taken.append(Delivery(queue, body, deliveries, (key, token)))
        return taken

    def _claim(self, room: int) -> tuple[list[tuple[int, int, str, int, bytes | None]], int, float]:
        token = secrets.randbits(62)
        with self._database.transaction as connection:
            now = time.time()
            until = now + self.lease
            values: list[object] = [until, token]
            for queue in self._queues:
                values += (queue, room)
            if len(self._queues) > 1:
                values.append(room)
            rows = connection.execute(self._claim_statement, values).fetchall()
            self._seen = None
            if not rows or now >= self._promote_at:
                self._promote_at = now + PROMOTE_SECONDS
                if self._promote(connection, now) and not rows:
                    rows = connection.execute(self._claim_statement, values).fetchall()
            if not rows:
                due = connection.execute(
                    f"SELECT min(due) FROM {self._prefix}messages WHERE due IS NOT NULL"
                ).fetchone()
                self._next_due = _NEVER if due[0] is None else due[0]
                # This transaction's own commit counts too.
                self._seen = connection.execute("PRAGMA data_version").fetchone()[0], self._database.commits + 1
        return rows, token, until

    def _promote(self, connection: sqlite3.Connection, now: float) -> int:
        """Make ready what has fallen due, of any queue."""
        return connection.execute(
            f"UPDATE {self._prefix}messages SET due = NULL, token = NULL WHERE due <= ?", (now,)
        ).rowcount

    def settled(self, deliveries: Sequence[Delivery]) -> None:
        """Make room: these are no longer held."""
        with self._lock:
            for delivery in deliveries:
                key, token = delivery.token
                held = self._held.get(key)
                if held is not None and held[0] == token:
                    del self._held[key]
            full = self._full
        if full and deliveries:
            self._bell.wake()

    def write_ack(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery]) -> None:
        """Ack within a transaction; settled() after it."""
        now = time.time()
        statement = f"DELETE FROM {self._prefix}messages {self._mine}"
        if len(deliveries) == 1:
            connection.execute(statement, (*deliveries[0].token, now))
        elif deliveries:
            connection.executemany(statement, [(*delivery.token, now) for delivery in deliveries])

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            with self._database.transaction as connection:
                self.write_ack(connection, deliveries)
            self.settled(deliveries)

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        if not deliveries:
            return
        with self._database.transaction as connection:
            now = time.time()
            due = now + delay if delay > 0 else None
            connection.executemany(
                f"UPDATE {self._prefix}messages SET due = ?, token = NULL, deliveries = deliveries - 1 {self._mine}",
                [(due, *delivery.token, now) for delivery in deliveries],
            )
        self.settled(deliveries)
        for topic in self._topics:
            self._bells.ring(topic, len(deliveries))

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        if not deliveries:
            return
        messages, bodies = f"{self._prefix}messages", f"{self._prefix}bodies"
        with self._database.transaction as connection:
            now = time.time()
            connection.executemany(
                f"INSERT INTO {self._prefix}dead(queue, reason, body) SELECT queue, ?, "
                f"coalesce(body, (SELECT body FROM {bodies} WHERE {bodies}.id = {messages}.id)) "
                f"FROM {messages} {self._mine}",
                [(reason, *delivery.token, now) for delivery in deliveries],
            )
            self.write_ack(connection, deliveries)
        self.settled(deliveries)

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        if not deliveries:
            return
        with self._database.transaction as connection:
            now = time.time()
            connection.executemany(
                f"UPDATE {self._prefix}messages SET due = ? {self._mine}",
                [(now + seconds, *delivery.token, now) for delivery in deliveries],
            )
        with self._lock:
            for delivery in deliveries:
                key, token = delivery.token
                if self._held.get(key, (None,))[0] == token:
                    self._held[key] = (token, now + seconds)

    def wake(self) -> None:
        self._woken = True
        self._bell.wake()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._bell.wake()
        with self._lock:
            held = [Delivery("", b"", 0, (key, token)) for key, (token, _) in self._held.items()]
        self.release_many(held)
        self._bell.close()
