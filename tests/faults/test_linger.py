"""Workers that were started beside a kernel outlive it for as long as there is something to do, and no longer."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qnb import registry
from qnb.worker.loop import Worker, WorkerOptions
from tests.faults.conftest import Workers, alive
from tests.faults.ledger import Log
from tests.servers.redis import RedisServer, find_redis

LINGER = "1.5"
KERNEL = """
import sys, time, qnb
from qnb.session import local
from tests.faults.ledger import job
local.LINGER_SECONDS = float(sys.argv[3])
session = qnb.Session(sys.argv[1], workers=2)
session.map(job(0.05, sys.argv[2]), range(60))
print(session._workers._process.pid, flush=True)
time.sleep(600)
"""


def test_what_is_queued_is_finished_then_they_end(log: Log, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KERNEL, f"sqlite:///{tmp_path}/qnb.db", str(log.path), LINGER]
    kernel = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    worker = int(kernel.stdout.readline())
    log.wait_for(lambda: log.marks("E"))
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    log.wait_for(lambda: len(log.marks("E")) == 60)
    assert alive(worker)
    log.wait_for(lambda: not alive(worker), 20)


def test_they_end_where_the_server_is_gone_for_good(workers: Workers, log: Log, tmp_path: Path) -> None:
    """It cannot be told whether there is a session; a process nobody knows of is worse than one started anew."""
    server = RedisServer(find_redis()[0], tmp_path, {})
    server.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "qnb.cli", "worker", f"{server.url}?patience=1", "--linger", LINGER, "--name", "w0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    workers.processes.append(process)  # type: ignore[arg-type]
    assert process.stderr is not None
    assert "lanes on redis" in process.stderr.readline()
    server.kill()
    process.communicate(timeout=60)
    assert process.returncode is not None


def test_a_worker_that_stops_wakes_all_that_waits_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of it sleeps on until it happens to look again: here, it would sleep for ever."""

    class Patient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return super().wait(None)

    url = "memory://ends"
    worker = Worker(registry.open_broker(url), registry.open_backend(url), b"k" * 32, WorkerOptions("w", pool="thread"))
    monkeypatch.setattr(worker.dependencies, "_work", Patient())
    worker.start()
    worker.stop()
    worker.join()
    assert [thread.name for thread in worker._threads if thread.is_alive()] == []
