"""Huey over Redis and on SQLite: a consumer with two worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tests.bench.systems.base import System


class HueyRedis(System):
    """With notify_result, its fastest way to a result."""

    label = "Huey, Redis"
    storage = "redis"
    polling: ClassVar[Mapping[str, float]] = {}

    def settings(self) -> Mapping[str, str]:
        return {"BENCH_HUEY": self.storage, "BENCH_REDIS": self.place.redis,
                "BENCH_FILE": f"{self.place.folder}/huey.db"}  # fmt: skip

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", "huey.bin.huey_consumer", "tests.bench.systems.huey_app.huey", "-q",
                "-k", "process", "-w", str(processes), "-d", "0.005", "-m", "0.05"]  # fmt: skip

    def connect(self) -> None:
        os.environ.update(self.settings())
        from tests.bench.systems.huey_app import TASKS

        self.tasks = TASKS

    def submit(self, job: str, *args: Any) -> Any:
        return self.tasks[job](*args)

    def result(self, handle: Any, timeout: float = 60) -> Any:
        return handle.get(blocking=True, timeout=timeout, **self.polling)


class HueySqlite(HueyRedis):
    """It polls: every 5 to 50 ms in the worker, up to 20 ms in the client."""

    label = "Huey, SQLite"
    storage = "sqlite"
    polling: ClassVar[Mapping[str, float]] = {"max_delay": 0.02, "backoff": 1.15}
