"""The Celery application, for its workers and its client; its settings come from the environment."""

from __future__ import annotations

import json
import os

from celery import Celery

from tests.bench.jobs import JOBS

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
if os.environ["BENCH_MODE"] == "pickle":
    app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle", "json"])
if os.environ["BENCH_MODE"] == "reliable":
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
    app.conf.broker_transport_options = {"visibility_timeout": 10}
app.conf.update(json.loads(os.environ.get("BENCH_CELERY", "{}")))
TASKS = {name: app.task(name=f"bench.{name}")(job) for name, job in JOBS.items()}
