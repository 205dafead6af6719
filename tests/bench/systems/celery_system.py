"""Celery over Redis with results in Redis: two prefork processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.jobs import JOBS
from tests.bench.systems.base import System


class Celery(System):
    """As it comes out of the box (JSON)."""

    label = "Celery, Redis"
    mode = "json"
    script = """
from tests.bench.systems.celery_app import TASKS
print(TASKS["noop"].delay(7).get(), flush=True)
"""

    def settings(self) -> Mapping[str, str]:
        return {"BENCH_BROKER": self.place.redis, "BENCH_BACKEND": self.place.redis, "BENCH_MODE": self.mode}

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", "celery", "-A", "tests.bench.systems.celery_app", "worker", "-l", "WARNING",
                "-P", "prefork", "-c", str(processes), "-n", f"bench{len(self.workers)}@%h"]  # fmt: skip

    def connect(self) -> None:
        os.environ.update(self.settings())
        from celery.result import ResultSet

        from tests.bench.systems.celery_app import TASKS

        assert TASKS.keys() == JOBS.keys()
        self.tasks, self.result_set = TASKS, ResultSet

    def submit(self, job: str, *args: Any) -> Any:
        return self.tasks[job].delay(*args)

    def result(self, handle: Any, timeout: float = 60) -> Any:
        return handle.get(timeout=timeout)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return self.result_set(handles).join(timeout=300)

    def map(self, count: int) -> list[Any]:
        chunks = self.tasks["noop"].chunks(((number,) for number in range(count)), 1000).apply_async()
        return [value for chunk in chunks.get(timeout=300) for value in chunk]


class CeleryPickle(Celery):
    """With pickle, for bytes."""

    label = "Celery, Redis, pickle"
    mode = "pickle"


class CeleryReliable(Celery):
    """With the settings its documentation gives against loss, and a visibility timeout of 10 s."""

    label = "Celery, Redis, acks_late"
    mode = "reliable"
