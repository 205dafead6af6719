"""The thread of a Pub/Sub broker: ends leases in time, and has delayed messages delivered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from qnb.brokers.pubsub.later import Later
from qnb.brokers.pubsub.shelf import Shelf
from qnb.errors import QnbError

log = logging.getLogger("qnb")

# How often consumers look for priorities that have come into use; mostly they hear of them before.
SCAN_SECONDS = 15.0
# How long the end waits for pulls that are still at the server.
END_SECONDS = 2.0
# The thread looks at the clock this often; when it did not for so long, this process stood still. What is read from
# the connection right after that was sent to it any time before.
TICK_SECONDS, STALL_SECONDS, DOUBT_SECONDS = 1.0, 2.0, 0.5
_NEVER = float("inf")


class Tended(Protocol):
    """A consumer, as its keeper sees it."""

    def tend(self, now: float) -> float:
        """Do what is due; when to come again, by the monotonic clock."""

    def learn(self, queue: str, part: str) -> None:
        """There is such a part of the queue."""

    def close(self) -> None:
        """See Consumer of the ports."""


class Keeper:
    """Started with the first consumer. Safe from any thread."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        shelf.on_use = self._tell
        self._changed = threading.Condition()
        self._served: dict[Tended, Sequence[str]] = {}
        self._laters: dict[str, Later] = {}
        self._jobs: list[Callable[[], None]] = []
        self._pending: set[Any] = set()
        self._at = _NEVER
        self._scan_at = time.monotonic() + SCAN_SECONDS
        self._ticked = time.monotonic()
        self._doubt_until = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    # For consumers ---------------------------------------------------------------------------------------------

    def serve(self, consumer: Tended, queues: Sequence[str]) -> None:
        """The consumer takes from these queues, and wants their delayed messages in time."""
        with self._changed:
            self._served[consumer] = queues
            if self._thread is None and not self._closed:
                self._ticked = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="qnb pubsub keeper", daemon=True)
                self._thread.start()
        self.ring(0.0)

    def remove(self, consumer: Tended) -> None:
        """The consumer is closed."""
        with self._changed:
            self._served.pop(consumer, None)
        self.ring(0.0)

    def ring(self, at: float) -> None:
        """Something will be due then."""
        if at < self._at:
            with self._changed:
                self._at = min(self._at, at)
                self._changed.notify_all()

    def soon(self, job: Callable[[], None]) -> None:
        """Run this on the keeper's thread."""
        with self._changed:
            self._jobs.append(job)
            self._at = 0.0
            self._changed.notify_all()

    def pending(self, future: Any) -> None:
        """A pull is at the server, until `over`."""
        with self._changed:
            self._pending.add(future)

    def fresh(self) -> bool:
        """Whether what arrives now was sent just now, as far as can be told."""
        now = time.monotonic()
        return now >= self._doubt_until and now - self._ticked < STALL_SECONDS

    def _tick(self) -> float:
        now = time.monotonic()
        if now - self._ticked >= STALL_SECONDS:
            self._doubt_until = now + DOUBT_SECONDS
        self._ticked = now
        return now

    def over(self, future: Any) -> None:
        """What it brought is in the consumer's hands, or given back."""
        with self._changed:
            self._pending.discard(future)
            if self._closed:
                self._changed.notify_all()

    def has_later(self, queue: str) -> None:
        """The queue has a place for delayed messages."""
        with self._changed:
            if queue not in self._laters or self._laters[queue].gone:
                self._laters[queue] = Later(self._shelf, queue, self)
        self.ring(0.0)

    def forget_later(self, queue: str) -> int:
        """Drop the delayed messages of the queue that are held here; how many."""
        with self._changed:
            later = self._laters.pop(queue, None)
        return later.drop() if later else 0

    # The thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (wait := self._at - self._tick()) > 0:
                    self._changed.wait(min(wait, TICK_SECONDS))
                if self._closed:
                    return
                self._at = _NEVER
                jobs, self._jobs = self._jobs, []
                served = list(self._served)
                wanted = {queue for queues in self._served.values() for queue in queues}
                laters = list(self._laters.items())
            self._do(jobs)
            now = time.monotonic()
            for consumer in served:
                self._tend(consumer.tend, now)
            for queue, later in laters:
                if queue in wanted:
                    self._tend(later.tend, now)
                else:
                    self._tend(later.rest, now)
            if served and now >= self._scan_at:
                self._scan_at = now + SCAN_SECONDS
                self._tend(self._scan, now)
            if served:
                self.ring(self._scan_at)

    def _tend(self, what: Callable[[float], float], now: float) -> None:
        try:
            self._tick()
            self.ring(what(now))
        except QnbError as error:
            if not self._closed:
                log.warning("%s; trying again", error)
            self.ring(now + 1.0)
        except Exception:  # without this thread leases would not end
            log.exception("Pub/Sub keeper")
            self.ring(now + 1.0)

    def _do(self, jobs: Sequence[Callable[[], None]]) -> None:
        for job in jobs:
            try:
                job()
            except QnbError as error:
                log.debug("%s", error)

    def _tell(self, queue: str, part: str) -> None:
        with self._changed:
            served = [consumer for consumer, queues in self._served.items() if queue in queues]
        for consumer in served:
            consumer.learn(queue, part)

    def _scan(self, now: float) -> float:
        parts = [found for name in self._shelf.look() if (found := self._shelf.take_apart(name))]
        with self._changed:
            served = list(self._served)
        for consumer in served:
            for queue, part in parts:
                consumer.learn(queue, part)
        return _NEVER

    def close(self) -> None:
        """Close what is open, and wait for pulls that are at the server: what they bring goes back."""
        with self._changed:
            served = list(self._served)
        for consumer in served:
            consumer.close()
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            laters = list(self._laters.values())
            thread, pending = self._thread, list(self._pending)
        if thread is not None:
            thread.join()
        if not self._shelf.link.target.emulated:  # the emulator would send to those who no longer listen
            for future in pending:
                future.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, END_SECONDS)
            jobs, self._jobs = self._jobs, []
        self._do(jobs)
        for later in laters:
            self._tend(later.rest, time.monotonic())
