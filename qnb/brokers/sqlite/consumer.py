"""Taking messages from the embedded file on leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from qnb.brokers.base import Delivery
from qnb.brokers.sqlite.bell import Bell, Bells, topic_of
from qnb.brokers.sqlite.file import Database
from qnb.brokers.sqlite.queue import QueueTables, Row
from qnb.errors import BrokerUnavailable

# How late an expired lease or a delay may be noticed while there is other work.
PROMOTE_SECONDS = 0.05
_NEVER = float("inf")


class SqliteConsumer:
    """Receives in one thread and settles in another; a settled delivery makes room at once."""

    def __init__(
        self, database: Database, bells: Bells, tables: QueueTables, queues: Sequence[str], prefetch: int, lease: float
    ) -> None:
        self.lease = lease
        self._database = database
        self._bells = bells
        self._tables = tables
        self._prefetch = prefetch
        self._bell = self._listen(queues)
        self._lock = threading.Lock()
        self._held: dict[int, Delivery] = {}
        self._seen: tuple[int, int] | None = None  # the version of the file in which nothing was ready
        self._next_due = _NEVER
        self._likely = False  # that there is more, as after a full claim
        self._promote_at = 0.0
        self._full = False
        self._woken = False
        self._asked: Sequence[str] | None = None  # queues to take from, from the next look on
        self.closed = False

    def _listen(self, queues: Sequence[str]) -> Bell:
        self._queues = list(queues)
        self._peek_statement = self._tables.peek_statement(len(queues)) if queues else ""
        self._topics = [topic_of("queue", queue) for queue in queues]
        return self._bells.hang(self._topics)

    def _change(self, armed: bool) -> None:
        """In the receiving thread: take from other queues."""
        queues, self._asked = self._asked, None
        if armed and self._bell.disarm():
            self._pass_on()
        old, self._bell = self._bell, self._listen(queues or ())
        old.close()
        self._seen, self._likely = None, False

    def _pass_on(self) -> None:
        """Rung, and gone before it looked: someone else's turn."""
        for topic in self._topics:
            self._bells.ring(topic)

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        looks, armed = 0, False
        try:
            while not self.closed:
                if self._asked is not None:
                    self._change(armed)
                    armed = False
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
                if self._bell.disarm():
                    looks, armed, self._likely = 0, False, True
                else:
                    self._bell.arm()
                    looks += 1
            return []
        except BrokerUnavailable:
            if self.closed:  # by another thread, in this moment
                return []
            raise
        finally:
            self._woken = False
            if armed and self._bell.disarm():
                self._pass_on()

    def _room(self) -> int:
        with self._lock:
            room = self._prefetch - len(self._held)
            if room <= 0:
                now = time.time()
                self._held = {key: held for key, held in self._held.items() if held.token[0] > now}
                room = self._prefetch - len(self._held)
            self._full = room <= 0
            return room

    def _next_end(self) -> float:
        with self._lock:
            return min((held.token[0] for held in self._held.values()), default=_NEVER)

    def _take(self, room: int) -> list[Delivery]:
        if not self._queues or (not self._likely and not self._peek()):
            return []
        rows, until = self._claim(room)
        self._likely = len(rows) == room
        if self._likely:  # there may be more, and a bell is only for one
            for topic in self._topics:
                self._bells.ring(topic)
        taken = []
        for _, key, queue, deliveries, body in rows:
            large = body is None
            if body is None:
                body = self._large_body(key)
            if body is not None:
                taken.append(Delivery(queue, body, deliveries + 1, (until, key, large)))
        with self._lock:
            for delivery in taken:
                self._held[delivery.token[1]] = delivery
        return taken

    def _peek(self) -> bool:
        """Whether a claim may find something. Only reads: an idle consumer does not stand in the way of writers."""
        version = self._database.version()
        if version == self._seen and time.time() < self._next_due:
            return False
        due, ready = self._database.read(self._peek_statement, self._queues)[0]
        self._next_due = _NEVER if due is None else due
        if ready or self._next_due <= time.time():
            return True
        self._seen = version
        return False

    def _claim(self, room: int) -> tuple[list[Row], float]:
        with self._database.lock, self._database.transaction as connection:
            now = time.time()
            until = now + self.lease
            rows = self._tables.claim(connection, self._queues, room, until)
            if not rows or now >= self._promote_at:
                self._promote_at = now + PROMOTE_SECONDS
                if self._tables.promote(connection, now) and not rows:
                    rows = self._tables.claim(connection, self._queues, room, until)
        return rows, until

    def _large_body(self, key: int) -> bytes | None:
        """Read after the claim: others need not wait for it. None when the queue was removed in this moment."""
        found = self._database.read(self._tables.select_body, (key,))
        return found[0][0] if found else None

    def settled(self, deliveries: Sequence[Delivery]) -> None:
        """Make room: these are no longer held."""
        with self._lock:
            for delivery in deliveries:
                if self._held.get(delivery.token[1]) is delivery:
                    del self._held[delivery.token[1]]
            full = self._full
        if full and deliveries:
            self._bell.wake()

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            with self._database.lock, self._database.transaction as connection:
                self._tables.ack(connection, deliveries)
            self.settled(deliveries)

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        if deliveries:
            with self._database.lock, self._database.transaction as connection:
                self._tables.release(connection, deliveries, delay)
            self.settled(deliveries)
            for topic in self._topics:
                self._bells.ring(topic, len(deliveries))

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        if deliveries:
            with self._database.lock, self._database.transaction as connection:
                self._tables.reject(connection, deliveries, reason)
            self.settled(deliveries)

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        if deliveries:
            with self._database.lock, self._database.transaction as connection:
                self._tables.extend(connection, deliveries, seconds)

    def take_from(self, queues: Sequence[str]) -> None:
        self._asked = list(dict.fromkeys(queues))
        self._bell.wake()

    def wake(self) -> None:
        self._woken = True
        self._bell.wake()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._bell.wake()
        with self._lock:
            held = list(self._held.values())
        self.release_many(held)
        self._bell.close()
