"""The dramatiq actors, for workers and client."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.bench.jobs import JOBS

broker = RedisBroker(url=os.environ["BENCH_REDIS"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_REDIS"])))
dramatiq.set_broker(broker)
TASKS = {name: dramatiq.actor(job, actor_name=name, store_results=True) for name, job in JOBS.items()}
