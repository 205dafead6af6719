"""The verbs of a system under measurement, and the worker processes it starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import psutil

from tests.servers.base import die_with_parent

ROOT = Path(__file__).parents[3]
WORKERS = 2


@dataclass(frozen=True)
class Place:
    """Where a system may work: a database of the private Redis, a folder, and an empty place of its broker."""

    redis: str
    folder: Path
    broker: str = ""

    @property
    def server(self) -> SplitResult:
        """The host and port of the broker's URL."""
        return urlsplit(self.broker)

    @property
    def word(self) -> str:
        """The name that nothing else on the broker has: its URL's prefix."""
        return dict(parse_qsl(self.server.query))["prefix"]


class System:
    """Submits jobs to worker processes of its own. `label` says which settings it has."""

    label = ""
    broker = ""  # of tests.services.BROKERS; "" for what works on the Redis or the folder
    script = ""  # a cold script that makes one call and prints its result, workers being up; gets URL and folder

    def __init__(self, place: Place) -> None:
        self.place = place
        self.workers: list[subprocess.Popen[bytes]] = []

    # Life

    def settings(self) -> Mapping[str, str]:
        """What its workers, its client and its cold script find in their environment."""
        return {}

    def command(self, processes: int) -> Sequence[str]:
        """What starts a worker with so many processes."""
        raise NotImplementedError

    def start(self, apart: bool = False) -> None:
        """Start the worker processes; `apart`: one command for each, so that one can be killed."""
        for _ in range(WORKERS if apart else 1):
            self.start_one(1 if apart else WORKERS)

    def start_one(self, processes: int) -> None:
        """Start one command."""
        environment = self.environment()
        with open(self.place.folder / f"{type(self).__name__}-{len(self.workers)}.log", "ab") as log:
            self.workers.append(
                subprocess.Popen(
                    self.command(processes), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True, preexec_fn=die_with_parent,
                )
            )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The environment of its processes. Celery refuses pickle as root unless told."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1", **self.settings()}

    def connect(self) -> None:
        """Open the client."""

    def stop(self) -> None:
        """End what was started, by pid."""
        family = [process for worker in self.workers for process in tree(worker.pid)]
        for worker in self.workers:
            worker.terminate()
        end = time.monotonic() + 3
        while time.monotonic() < end and any(worker.poll() is None for worker in self.workers):
            time.sleep(0.02)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for worker in self.workers:
            worker.wait()
        self.workers.clear()

    # Work

    def submit(self, job: str, *args: Any) -> Any:
        """Submit one call; a handle."""
        raise NotImplementedError

    def result(self, handle: Any, timeout: float = 60) -> Any:
        """The value behind a handle."""
        raise NotImplementedError

    def submit_many(self, count: int) -> list[Any]:
        """So many no-ops, each submitted by itself."""
        submit = self.submit
        return [submit("noop", number) for number in range(count)]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """The values behind handles."""
        return [self.result(handle, 300) for handle in handles]

    def call(self, number: int) -> Any:
        """One no-op to its result."""
        return self.result(self.submit("noop", number))

    def map(self, count: int) -> list[Any]:
        """So many no-ops the way the system does it best."""
        raise NotImplementedError

    # Looking at it

    def pids(self) -> list[int]:
        """All processes of the workers."""
        return [process.pid for worker in self.workers for process in tree(worker.pid)]

    def victims(self) -> list[int]:
        """What is killed together when one of two workers dies (they were started apart)."""
        return [process.pid for process in tree(self.workers[-1].pid)]


def tree(pid: int) -> list[psutil.Process]:
    """A process and those below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
