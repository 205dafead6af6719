"""Workers and kernels as processes that a test may kill: only those that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import qnb
from qnb import registry
from tests.faults.ledger import Log
from tests.services import BROKERS, Case, Services, with_options

KEY = "the key of the fault suite, used for nothing else"
LEASE = 2.0
# Brokers whose faults are worth seeing: valkey, rediss and cluster are redis again, and memory: has no other process.
CASES = [case for case in BROKERS if case.processes and case.label in registry.BROKERS and not case.again]


@dataclass(frozen=True)
class Ground:
    """Where a fault happens. `lease` in seconds as asked for; `death`: within what a dead worker's tasks are taken
    over; `restart` kills what serves it and brings it back."""

    url: str
    label: str
    lease: float
    death: float
    restart: Callable[[], None] | None = None


def ground(case: Case, url: str, restart: Callable[[], None] | None = None) -> Ground:
    """A place with a short lease."""
    lease = max(LEASE, case.lease)
    late = 0.0 if case.death is None else max(0.0, case.death - case.lease)
    return Ground(with_options(url, lease=lease), case.label, lease, lease + max(1.0, late + 0.5), restart)


class Workers:
    """Starts `qnb worker` processes and kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, session: qnb.Session, url: str, count: int = 1, concurrency: int = 1) -> list[psutil.Process]:
        """So many workers; returns once they are present."""
        started, names = [], set()
        for _ in range(count):
            name = f"w{len(self.processes)}"
            command = [sys.executable, "-m", "qnb.cli", "worker", url, "--name", name]
            with open(self.folder / f"{name}.log", "wb") as log:
                command += ["--concurrency", str(concurrency)]
                # A session of its own: Ctrl-C in a terminal is meant for the test, which ends its workers itself.
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            self.processes.append(process)
            started.append(psutil.Process(process.pid))
            names.add(name)
        end = time.monotonic() + 20
        while not names <= set(session.workers.names):
            assert time.monotonic() < end, f"workers did not start: {self.logs()}"
            time.sleep(0.05)
        return started

    def logs(self) -> str:
        """What the workers have written."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("w*.log")))

    def stop(self) -> None:
        """End all that this test started, stopped ones too."""
        for process in self.processes:
            for one in tree(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGCONT)
                    one.kill()
            process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """A process and those below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int) -> None:
    """kill -9 of a process and all below it."""
    for one in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions and workers of a test share a key."""
    monkeypatch.setenv("QNB_KEY", KEY)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Worker processes of this test."""
    found = Workers(tmp_path)
    yield found
    found.stop()
    print(found.logs()[-4000:])


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """The marks of this test's tasks."""
    return Log(tmp_path / "marks.txt")


@pytest.fixture(params=CASES, ids=lambda case: case.label)
def place(request: pytest.FixtureRequest, services: Services) -> Ground:
    """A broker of this test's own, with a short lease."""
    return ground(request.param, request.param.place(services))


@pytest.fixture
def url(place: Ground) -> str:
    """Where it is."""
    return place.url


@pytest.fixture(params=[case for case in CASES if case.restart and case.label != "sqlite"], ids=lambda case: case.label)
def server(request: pytest.FixtureRequest, services: Services) -> Ground:
    """A server of this test's own, which may be killed and comes back with its data."""
    url, restart = request.param.restart(services)
    return ground(request.param, url, restart)


@pytest.fixture
def open_session() -> Iterator[Callable[[str], qnb.Session]]:
    """Sessions without local workers, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(url: str) -> qnb.Session:
            session = qnb.Session(url, workers=0)
            stack.callback(session.close)
            return session

        yield make


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
