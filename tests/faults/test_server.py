"""kill -9 of the broker with a restart on its own data; a network that is cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import qnb
from tests.faults.conftest import LEASE, Ground, Workers
from tests.faults.ledger import Log, job
from tests.faults.test_kill import outcomes_of
from tests.servers.proxy import Proxy
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
