"""What the conformance tests share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from qnb.backends.base import Backend
from qnb.brokers.base import Broker, Consumer, Delivery, Inbox
from qnb.features import Support
from qnb.message import Envelope, Note
from qnb.registry import open_backend, open_broker, partner_url
from tests.services import Case, with_options


class Place:
    """Where a test works. Everything opened through it is closed at its end."""

    def __init__(self, url: str, case: Case, *, backend_url: str | None = None) -> None:
        self.url, self.case, self._backend_url = url, case, backend_url
        self.lease, self.late = case.lease, case.late
        self.death = (case.lease if case.death is None else case.death) + case.late
        self._opened = ExitStack()

    def broker(self, **options: object) -> Broker:
        broker: Broker = open_broker(with_options(self.url, **options))
        self._opened.callback(broker.close)
        return broker

    def backend(self, **options: object) -> Backend:
        backend: Backend = open_backend(with_options(self._backend_url or partner_url(self.url), **options))
        self._opened.callback(backend.close)
        return backend

    def consumer(self, broker: Broker, *queues: str, prefetch: int = 1000) -> Consumer:
        consumer = broker.consume(queues or ("q",), prefetch=prefetch)
        self._opened.callback(consumer.close)
        return consumer

    def inbox(self, broker: Broker, peer: str) -> Inbox:
        inbox = broker.bus().join(peer)
        self._opened.callback(inbox.close)
        return inbox

    def process(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Another Python process that runs this code; its standard output is to be read."""
        if not self.case.processes:
            pytest.skip(f"{self.case.label}: lives in one process")
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)

        def end() -> None:
            process.kill()
            process.communicate()

        self._opened.callback(end)
        return process

    def order(self, found: Iterable[bytes]) -> list[bytes]:
        """As they came, where this broker keeps the order of publishing; else sorted."""
        return list(found) if self.case.ordered else sorted(found)

    def close(self) -> None:
        self._opened.close()


def messages(*bodies: bytes, queue: str = "q", **options: Any) -> list[Envelope]:
    """Envelopes with these bodies."""
    return [Envelope(queue, body, **options) for body in bodies]


def numbered(count: int, queue: str = "q") -> list[Envelope]:
    """Envelopes with the bodies 0 … count - 1."""
    return messages(*(b"%d" % number for number in range(count)), queue=queue)


def bodies(deliveries: Iterable[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def take(consumer: Consumer, count: int, within: float = 5.0, limit: int = 1000) -> list[Delivery]:
    """As many deliveries as wanted; fewer when they do not come in time."""
    return _gather(consumer.receive_many, count, within, limit)


def read(inbox: Inbox, count: int, within: float = 5.0, limit: int = 1000) -> list[Note]:
    """As many notes as wanted; fewer when they do not come in time."""
    return _gather(inbox.receive_many, count, within, limit)


def _gather(receive: Callable[[int, float], Sequence[Any]], count: int, within: float, limit: int) -> list[Any]:
    got: list[Any] = []
    deadline = time.monotonic() + within
    while len(got) < count and time.monotonic() < deadline:
        got += receive(min(limit, count - len(got)), deadline - time.monotonic())
    return got


def nothing(consumer: Consumer, seconds: float = 0.2) -> bool:
    """Whether no delivery comes for so long."""
    return not consumer.receive_many(1000, seconds)


def waits(broker: Broker, queue: str, count: int) -> bool:
    """Whether so many messages wait there. Of a broker that has no depth it is only seen whether nothing waits."""
    if broker.features.queue_depth is not Support.NONE:
        return broker.depth(queue) == count
    assert broker.depth(queue) is None
    return count > 0 or broker.purge(queue) == 0


class Later:
    """Runs something in another thread; `result()` is what it gave, `seconds` how long it took."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            self._result = work()
        except BaseException as error:
            self._error = error
        self.seconds = time.monotonic() - begun

    def result(self, timeout: float = 20.0) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._result
