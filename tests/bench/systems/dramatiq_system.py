"""dramatiq over Redis with results in Redis: two processes with its default of 8 threads each."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.systems.base import System


class Dramatiq(System):
    """dramatiq -p 2."""

    label = "dramatiq, Redis (8 threads a process)"
    script = """
from tests.bench.systems.dramatiq_app import TASKS
print(TASKS["noop"].send(7).get_result(block=True), flush=True)
"""

    def settings(self) -> Mapping[str, str]:
        return {"BENCH_REDIS": self.place.redis}

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", "dramatiq", "tests.bench.systems.dramatiq_app", "-p", str(processes),
                "--skip-logging"]  # fmt: skip

    def connect(self) -> None:
        os.environ.update(self.settings())
        from tests.bench.systems.dramatiq_app import TASKS

        self.tasks = TASKS

    def submit(self, job: str, *args: Any) -> Any:
        return self.tasks[job].send(*args)

    def result(self, handle: Any, timeout: float = 60) -> Any:
        return handle.get_result(block=True, timeout=int(timeout * 1000))
