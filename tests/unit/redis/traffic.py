"""A publisher, a consumer and an inbox that go on while a test takes the servers away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qnb.brokers.redis.broker import RedisBroker
from qnb.message import Envelope, Note

_SECONDS = 40.0


class Traffic:
    """Each in a thread of its own, in a `with`. `still` keeps the publisher from sending."""

    def __init__(self, url: str) -> None:
        self.broker = RedisBroker(url)
        self.still = threading.Lock()
        self.sent = 0
        self.taken: set[bytes] = set()
        self.noted: list[bytes] = []
        self._consumer = self.broker.consume(["q", "r"], prefetch=100)
        self._inbox = self.broker.bus().join("me")
        self._ending, self._over = threading.Event(), threading.Event()
        self._errors: list[Exception] = []
        self._progress = threading.Condition()
        self._threads = [
            threading.Thread(target=self._guard, args=(work,)) for work in (self._publish, self._consume, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            with self._progress:
                self._errors.append(error)
                self._progress.notify_all()

    def _publish(self) -> None:
        bus = self.broker.bus()
        while not self._ending.wait(0.002):
            with self.still:
                body = b"%d" % self.sent
                self.broker.publish_many([Envelope("q", body, priority=self.sent % 2), Envelope("r", b"r" + body)])
                bus.post_many([Note("me", "event", body)])
                self.sent += 1

    def _consume(self) -> None:
        while not self._over.is_set():
            deliveries = self._consumer.receive_many(10, 5.0)
            self._consumer.ack_many(deliveries)
            with self._progress:
                self.taken |= {delivery.body for delivery in deliveries}
                self._progress.notify_all()

    def _read(self) -> None:
        while not self._over.is_set():
            notes = self._inbox.receive_many(100, 5.0)
            with self._progress:
                self.noted += [note.body for note in notes]
                self._progress.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        with self._progress:
            while not (self._errors or condition()):
                left = end - time.monotonic()
                assert left > 0, f"{self.sent} sent, {len(self.taken)} taken, {len(self.noted)} notes"
                self._progress.wait(min(1.0, left))
        if self._errors:
            raise self._errors[0]

    def flow(self, more: int = 50) -> None:
        """Until so many more have gone through."""
        aim = self.sent + more
        self._wait(lambda: len(self.taken) >= 2 * aim and len(self.noted) >= aim)

    def finish(self) -> None:
        """Send no more, until all that was sent has arrived."""
        self._ending.set()
        self._threads[0].join(_SECONDS)
        numbers = {b"%d" % number for number in range(self.sent)}
        self._wait(lambda: self.taken >= numbers | {b"r" + n for n in numbers} and set(self.noted) >= numbers)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._over.set()
        self.broker.close()  # ends a wait for servers that are gone
        self._consumer.close()
        self._inbox.close()
        for thread in self._threads:
            thread.join(_SECONDS)
