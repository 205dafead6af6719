"""Sessions with real workers on each broker: threads in memory, processes on a file and on a private Redis.

One session a module and broker, so that processes are started once; what must not be shared makes a `sister` (another
session on the same place, served by the same workers) or a place of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb import registry
from tests.services import BROKERS as CASES
from tests.services import Services

KEY = "the key of the contract suite, used for nothing else"
ROOT = Path(__file__).parents[2]
WORKERS = 2
# The whole suite on other brokers: QNB_TEST_BROKERS=amqp,kafka python -m pytest tests/contract
_ASKED = os.environ.get("QNB_TEST_BROKERS", "")
KINDS = tuple((_ASKED or "memory,sqlite,redis").split(","))
FEW = tuple((_ASKED or "memory,redis").split(","))  # for what is built upon sessions and knows of no broker
EVERY = tuple(case.label for case in CASES if case.label in registry.BROKERS and not case.again)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the condition gives once it is true; for states that no event tells of."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)
    return found


class Gate:
    """A task that says that it runs and stays until it is let go. Each gate is a function never timed before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        started, opened = str(folder / "started"), str(folder / "opened")

        def wait_at_gate(value: Any = None) -> Any:
            import os
            import time

            with open(started, "a") as file:
                file.write(f"{value}\n")
            while not os.path.exists(opened):
                time.sleep(0.005)
            return value

        self.task = wait_at_gate

    def started(self) -> list[str]:
        """The values of those that have started."""
        path = self.folder / "started"
        return path.read_text().split() if path.exists() else []

    def wait(self, count: int = 1) -> None:
        """Until so many have started."""
        until(lambda: len(self.started()) >= count)

    def open(self) -> None:
        """Let all go, now and from now on."""
        (self.folder / "opened").touch()


@pytest.fixture(autouse=True, scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One key for sessions and workers, and nothing of the user's own settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QNB_BROKER", "QNB_BACKEND"):
            patch.delenv(name, raising=False)
        patch.setenv("QNB_KEY", KEY)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every module runs on KINDS; one that says `BROKERS = EVERY` runs on every broker."""
    if "kind" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "BROKERS", KINDS)
        metafunc.parametrize("kind", kinds, scope="module", indirect=True)


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """The broker under test."""
    return str(request.param)


def new_place(kind: str, services: Services) -> str:
    """The URL of a new, empty place."""
    return next(case for case in CASES if case.label == kind).place(services)


@pytest.fixture(scope="module")
def place(kind: str, services: Services) -> str:
    """The URL of this module's place."""
    return new_place(kind, services)


@pytest.fixture(scope="module")
def session(place: str, environment: None) -> Iterator[qnb.Session]:
    """A session with two lanes, warm."""
    opened = qnb.Session(place, workers=WORKERS)
    opened.submit(int).result(30)
    until(lambda: opened.workers.names)
    yield opened
    opened.close()


@pytest.fixture
def sister(session: qnb.Session, place: str) -> Iterator[qnb.Session]:
    """Another session on the same place, for tests that shut it down."""
    opened = qnb.Session(place, workers=0)
    yield opened
    opened.close()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates; all are opened at the end, so that no lane stays blocked."""
    with contextlib.ExitStack() as stack:

        def make() -> Gate:
            folder = tmp_path / f"gate{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            gate = Gate(folder)
            stack.callback(gate.open)
            return gate

        yield make


@pytest.fixture
def gate(gates: Callable[[], Gate]) -> Gate:
    """One gate."""
    return gates()


@pytest.fixture
def blocked(session: qnb.Session, gates: Callable[[], Gate]) -> Gate:
    """Every lane stands at this gate: whatever is submitted now stays queued until it opens."""
    gate = gates()
    futures = [session.submit(gate.task, number) for number in range(WORKERS)]
    gate.wait(WORKERS)
    until(lambda: all(future.running() for future in futures))
    return gate


@contextlib.contextmanager
def own_worker(session: qnb.Session, command: list[str], path: Sequence[str] = (), **how: Any) -> Iterator[None]:
    """The only worker of a session's place, started by this command; `path` goes before all that it imports from."""
    entries = os.pathsep.join([*path, str(ROOT), *(entry for entry in sys.path if entry)])
    environment = os.environ | {"PYTHONPATH": entries, "QNB_KEY": KEY}
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **how)
    try:
        until(lambda: session.workers.names)
        yield
    finally:
        worker.terminate()
        worker.wait(20)


def run_python(code: str, *arguments: str, cwd: Path | None = None, timeout: float = 60, **env: str) -> Any:
    """A script as `__main__` of a process of its own; its CompletedProcess."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=os.environ | {"PYTHONPATH": path} | env
    )
