"""concurrent.futures.ProcessPoolExecutor(2): no broker, no crash safety; what the standard library gives."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil

from tests.bench.jobs import JOBS
from tests.bench.systems.base import WORKERS, System


class Executor(System):
    """Two processes, forked."""

    label = "ProcessPoolExecutor(2)"
    script = """
from concurrent.futures import ProcessPoolExecutor
from tests.bench.jobs import noop
executor = ProcessPoolExecutor(2)
print(executor.submit(noop, 7).result(), flush=True)
"""

    def start(self, apart: bool = False) -> None:
        self.executor = ProcessPoolExecutor(WORKERS)

    def stop(self) -> None:
        children = psutil.Process().children(recursive=True)
        self.executor.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()

    def submit(self, job: str, *args: Any) -> Any:
        return self.executor.submit(JOBS[job], *args)

    def result(self, handle: Any, timeout: float = 60) -> Any:
        return handle.result(timeout)

    def map(self, count: int) -> list[Any]:
        return list(self.executor.map(JOBS["noop"], range(count), chunksize=1000))

    def pids(self) -> list[int]:
        return [child.pid for child in psutil.Process().children(recursive=True)]

    def victims(self) -> list[int]:
        return self.pids()[-1:]
