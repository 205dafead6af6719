"""kill -9 of a lane, a worker, a kernel; SIGSTOP of a worker past its lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import pytest

import qnb
from qnb.registry import partner_url
from tests.faults.conftest import Ground, Workers, kill_tree
from tests.faults.ledger import Log, job

CALLS = 60
SECONDS = 0.05

OpenSession = Callable[[str], qnb.Session]


def outcomes_of(futures: list[qnb.Future], seconds: float = 60.0) -> list[object]:
    """Values and exceptions; every future has exactly one."""
    wait(futures, seconds)
    assert all(future.done() for future in futures), [future.state for future in futures if not future.done()]
    return [future.exception() or future.result() for future in futures]


def test_killed_lane(place: Ground, url: str, open_session: OpenSession, workers: Workers, log: Log) -> None:
    session = open_session(url)
    workers.start(session, url, concurrency=2)
    count = 24
    work = job(0.2, str(log.path))  # long enough to be killed in the middle
    futures = [session.submit(work, index) for index in range(count)]
    log.wait_for(lambda: len(log.marks("E")) > count // 3)
    looking = time.time()
    victim = log.wait_for(lambda: [pid for _, pid, at in log.marks("S") if at > looking])[0]
    os.kill(victim, signal.SIGKILL)
    at = time.time()
    outcomes = outcomes_of(futures)
    ledger = log.ledger("lane kill -9", outcomes, count, at)
    assert outcomes == list(range(count))
    # What was killed never came to its end, and nothing else is run again: but what ended as the kill fell, unheard.
    assert ledger.run_twice == 0 or ledger.twice == [i for i, pid, _ in log.marks("E") if pid == victim][-1:]
    again = [
        i for i, pid, _ in log.marks("S") if pid == victim and (i, pid) not in {(a, b) for a, b, _ in log.marks("E")}
    ]
    restarted = [started for i, pid, started in log.marks("S") if i in again and pid != victim]
    assert restarted
    assert restarted[0] - at < place.lease  # its death was seen, and not only its silence


def test_killed_worker(place: Ground, url: str, open_session: OpenSession, workers: Workers, log: Log) -> None:
    session = open_session(url)
    first, _ = workers.start(session, url, count=2)
    work = job(SECONDS, str(log.path))
    futures = [session.submit(work, index) for index in range(CALLS)]
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 3)
    lane = {child.pid for child in first.children()}
    log.wait_for(lambda: lane & set(log.running()))
    kill_tree(first.pid)
    at = time.time()
    outcomes = outcomes_of(futures)
    ledger = log.ledger("worker kill -9", outcomes, CALLS, at)
    assert outcomes == list(range(CALLS))
    work_left = CALLS * SECONDS
    assert ledger.seconds_after < place.death + work_left + 5.0  # a busy machine is late


def test_stopped_worker(url: str, open_session: OpenSession, workers: Workers, log: Log) -> None:
    """SIGSTOP past the lease: another takes over; the stopped one wakes, and what it tells changes nothing."""
    session = open_session(url)
    first, _ = workers.start(session, url, count=2)
    work = job(SECONDS, str(log.path))
    futures = [session.submit(work, index) for index in range(CALLS)]
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 3)
    lanes = first.children()
    log.wait_for(lambda: {lane.pid for lane in lanes} & set(log.running()))
    for process in (first, *lanes):
        process.suspend()
    at = time.time()
    outcomes = outcomes_of(futures)
    for process in (*lanes, first):
        process.resume()
    # The woken worker serves on, and settles what it held without harm.
    after = session.map(job(0.0, str(log.path)), range(1000, 1010))
    assert after.results(30) == list(range(1000, 1010))
    ledger = log.ledger("worker SIGSTOP past its lease", outcomes, CALLS, at)
    assert outcomes == list(range(CALLS))
    # At most what was in its hands: one small frame, whose results by rpc: nobody else can look up.
    # At most what was in its hands; where results are kept nowhere, also what it had ended and could not settle.
    assert ledger.run_twice <= (CALLS // 2 if partner_url(url) == "rpc:" else 8)


KERNEL = """
import sys, time, qnb
from tests.faults.ledger import job
session = qnb.Session(sys.argv[1], workers=0)
batch = session.map(job(float(sys.argv[3]), sys.argv[2]), range(int(sys.argv[4])))
print(batch.run, flush=True)
time.sleep(600)
"""


def test_killed_kernel(
    url: str, open_session: OpenSession, workers: Workers, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run goes on without its kernel; every outcome is in the backend."""
    if partner_url(url) == "rpc:":  # results that are to outlive a kernel need a place
        monkeypatch.setenv("QNB_BACKEND", f"sqlite:///{tmp_path}/results.db")
    session = open_session(url)
    workers.start(session, url, concurrency=2)
    command = [sys.executable, "-c", KERNEL, url, str(log.path), str(SECONDS), str(CALLS)]
    kernel = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    run = kernel.stdout.readline().strip()
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 4)
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    at = time.time()
    log.wait_for(lambda: len({index for index, _, _ in log.marks("E")}) == CALLS)

    def stored() -> int:
        return sum(record.count for record in session.backend.fetch_many(run))

    log.wait_for(lambda: stored() >= CALLS, 10)
    assert stored() == CALLS
    ledger = log.ledger("kernel kill -9", list(range(stored())), CALLS, at)
    assert (ledger.lost, ledger.run_twice) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_warm_shutdown(url: str, open_session: OpenSession, workers: Workers, log: Log, number: int) -> None:
    """SIGTERM: what runs is finished, the rest is released at once, nothing runs twice."""
    session = open_session(url)
    first, _ = workers.start(session, url, count=2)
    work = job(SECONDS, str(log.path))
    futures = [session.submit(work, index) for index in range(CALLS)]
    log.wait_for(lambda: len(log.marks("E")) > CALLS // 3)
    first.send_signal(number)
    at = time.time()
    outcomes = outcomes_of(futures)
    ledger = log.ledger("warm shutdown", outcomes, CALLS, at)
    assert outcomes == list(range(CALLS))
    assert ledger.run_twice == 0
    assert first.wait(10) in (0, None)


def test_poison_is_capped(url: str, open_session: OpenSession, workers: Workers) -> None:
    """A call that kills its lane is lost after max_deliveries, in the dead letters with the reason; others live."""
    session = open_session(url)
    workers.start(session, url, concurrency=2)

    def poison(index: int) -> int:
        if index == 3:
            import os

            os.kill(os.getpid(), 9)
        return index

    batch = session.map(poison, range(8), chunksize=8)
    assert batch.wait(30)
    assert batch.counts == {"done": 7, "lost": 1}
    with pytest.raises(qnb.TaskLost, match=r"signal 9 \(SIGKILL\), 3 times"):
        batch[3].result()
    end = time.monotonic() + 10
    while not (letters := session.broker.dead_letters(session.queue)) and time.monotonic() < end:
        time.sleep(0.05)
    assert "SIGKILL" in letters[0].reason
