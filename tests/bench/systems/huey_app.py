"""The Huey application, for its consumer and its client."""

from __future__ import annotations

import os

from huey import RedisHuey, SqliteHuey

from tests.bench.jobs import JOBS

if os.environ["BENCH_HUEY"] == "redis":
    huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], notify_result=True)
else:
    huey = SqliteHuey("bench", filename=os.environ["BENCH_FILE"])
TASKS = {name: huey.task(name=name)(job) for name, job in JOBS.items()}
