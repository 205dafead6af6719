"""qnb itself, over Redis and on the embedded file: `qnb worker --concurrency 2` and a Session."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import qnb
from tests.bench.jobs import JOBS
from tests.bench.systems.base import System

KEY = "the key of the benchmark, used for nothing else"


class OverRedis(System):
    """Redis streams, results in the same Redis."""

    label = "qnb, Redis"
    script = """
import qnb, sys
from tests.bench.jobs import noop
session = qnb.Session(sys.argv[1])
print(session.submit(noop, 7).result(), flush=True)
"""

    @property
    def url(self) -> str:
        """The broker."""
        return self.place.redis

    def settings(self) -> Mapping[str, str]:
        return {"QNB_KEY": KEY}

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", "qnb.cli", "worker", self.url, "--concurrency", str(processes),
                "--name", f"bench-{len(self.workers)}"]  # fmt: skip

    def connect(self) -> None:
        self.session = qnb.Session(self.url, workers=0, key=KEY)

    def stop(self) -> None:
        if hasattr(self, "session"):
            self.session.close()
        super().stop()

    def submit(self, job: str, *args: Any) -> Any:
        return self.session.submit(JOBS[job], *args)

    def submit_many(self, count: int) -> list[Any]:
        submit, job = self.session.submit, JOBS["noop"]
        return [submit(job, number) for number in range(count)]

    def result(self, handle: Any, timeout: float = 60) -> Any:
        return handle.result(timeout)

    def map(self, count: int) -> list[Any]:
        batch = self.session.map(JOBS["noop"], range(count))
        values = batch.results()
        assert batch.counts["done"] == count
        return values


class Embedded(OverRedis):
    """One SQLite file."""

    label = "qnb, embedded"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.place.folder}/qnb.db"


class OverRabbit(OverRedis):
    """Results in the reply queue of the session (`rpc:`), as on all brokers below."""

    label = "qnb, RabbitMQ"
    broker = "amqp"

    @property
    def url(self) -> str:
        return self.place.broker


class OverSqs(OverRabbit):
    """ministack in place of AWS."""

    label = "qnb, SQS"
    broker = "sqs"


class OverKafka(OverRabbit):
    """One Kafka."""

    label = "qnb, Kafka"
    broker = "kafka"


class OverZookeeper(OverRabbit):
    """One ZooKeeper that does not wait for its disk."""

    label = "qnb, ZooKeeper"
    broker = "zookeeper"


class OverPubsub(OverRabbit):
    """Google's emulator, or the double of the tests."""

    label = "qnb, Pub/Sub"
    broker = "pubsub"
