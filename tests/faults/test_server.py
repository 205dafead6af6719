"""kill -9 of the broker with a restart on its own data; a network that is cut."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import qnb
from tests.faults.conftest import LEASE, Ground, Workers
from tests.faults.ledger import Log, job
from tests.faults.test_kill import outcomes_of
from tests.services import Services

OpenSession = Callable[[str], qnb.Session]
CALLS = 60


@pytest.mark.filterwarnings("ignore::qnb.brokers.redis.server.RedisSettingsWarning")
@pytest.mark.timeout(240)
def test_killed_server(server: Ground, open_session: OpenSession, workers: Workers, log: Log) -> None:
    assert server.restart is not None
    session = open_session(server.url)
    workers.start(session, server.url, count=2)
    work = job(0.05, str(log.path))
    futures = [session.submit(work, index) for index in range(CALLS)]
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 3)
    at = time.time()
    # Submitted while the server is away, or as it comes back: sent when it is there. The restart stays in this
    # thread, for a server dies with the thread that has started it.
    with ThreadPoolExecutor(1) as other:
        later = other.submit(lambda: [session.submit(work, index) for index in range(CALLS, CALLS + 5)])
        server.restart()
        futures += later.result()
    outcomes = outcomes_of(futures, 120)
    ledger = log.ledger(f"{server.label}: server kill -9, restarted", outcomes, CALLS + 5, at)
    assert outcomes == list(range(CALLS + 5))
    assert ledger.lost == 0


class Proxy:
    """TCP to a server, which can be cut: connections are closed and new ones refused until it is mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._cut = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Close everything; new connections are closed at once."""
        with self._lock:
            self._cut = True
            for one in list(self._pairs):
                self._drop(one)

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def close(self) -> None:
        """End."""
        self._closed = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)
        one.close()
        if other is not None and other in self._pairs:
            self._drop(other)

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.1):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._pairs:
                        self._pass(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        ours, _ = self._listener.accept()
        if self._cut:
            ours.close()
            return
        theirs = socket.create_connection(self._target)
        self._pairs[ours], self._pairs[theirs] = theirs, ours
        for one in (ours, theirs):
            self._selector.register(one, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        try:
            data = one.recv(65536)
            if data:
                self._pairs[one].sendall(data)
                return
        except OSError:
            pass  # reset by either side: the pair is done with
        self._drop(one)


@pytest.fixture
def proxy(services: Services) -> Iterator[tuple[Proxy, str]]:
    """A Redis behind a proxy, and its URL."""
    server = services.redis(appendonly="yes")
    host, _, port = server.url.removeprefix("redis://").partition("/")[0].rpartition(":")
    found = Proxy(host, int(port))
    yield found, f"redis://127.0.0.1:{found.port}/0?lease={LEASE}"
    found.close()


def test_cut_network(proxy: tuple[Proxy, str], open_session: OpenSession, workers: Workers, log: Log) -> None:
    line, url = proxy
    session = open_session(url)
    workers.start(session, url, count=2)
    work = job(0.05, str(log.path))
    futures = [session.submit(work, index) for index in range(CALLS)]
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 3)
    line.cut()
    at = time.time()
    ended = len(log.marks("E"))
    log.wait_for(lambda: len(log.marks("E")) > ended)  # lanes finish what they have, cut off or not
    line.mend()
    outcomes = outcomes_of(futures)
    ledger = log.ledger("network cut and mended", outcomes, CALLS, at)
    assert outcomes == list(range(CALLS))
    assert ledger.lost == 0
