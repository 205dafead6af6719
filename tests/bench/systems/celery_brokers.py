"""Celery on other brokers, through kombu's transports. Where there is no `rpc://`, results are in the Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from tests.bench.systems.celery_system import Celery

# Transports that poll sleep for a second by default when there was nothing: here for a hundredth of that.
POLLING = 0.01


class CeleryOn(Celery):
    """A queue of its own for each run, since the server is shared; no gossip, which only some transports can do."""

    def settings(self) -> Mapping[str, str]:
        more = {"task_default_queue": self.place.word, "worker_enable_remote_control": self.remote, **self.more()}
        found = {"BENCH_BROKER": self.url, "BENCH_BACKEND": self.results, "BENCH_MODE": self.mode}
        return {**found, "BENCH_CELERY": json.dumps(more)}

    remote = False

    @property
    def url(self) -> str:
        """The broker as Celery has it."""
        raise NotImplementedError

    @property
    def results(self) -> str:
        """Its result backend."""
        return self.place.redis

    def more(self) -> Mapping[str, Any]:
        """More of its settings."""
        return {"broker_transport_options": {"polling_interval": POLLING}}

    def command(self, processes: int) -> Sequence[str]:
        return [*super().command(processes), *(() if self.remote else ("--without-gossip", "--without-mingle"))]


class CeleryRabbit(CeleryOn):
    """As it comes out of the box."""

    label = "Celery, RabbitMQ, rpc:// results"
    broker = "amqp"
    remote = True
    results = "rpc://"

    @property
    def url(self) -> str:
        return f"amqp://{self.place.server.netloc}//"

    def more(self) -> Mapping[str, Any]:
        return {}


class CelerySqs(CeleryOn):
    """With the long polling that it has by default, and no sleep beside it."""

    label = "Celery, SQS, results in Redis"
    broker = "sqs"

    @property
    def url(self) -> str:
        return f"sqs://{self.place.server.netloc}"

    def more(self) -> Mapping[str, Any]:
        region = dict(parse_qsl(self.place.server.query))["region"]
        options = {"region": region, "is_secure": False, "polling_interval": 0}
        return {"broker_transport_options": options}


class CeleryKafka(CeleryOn):
    """The transport `confluentkafka`."""

    label = "Celery, Kafka, results in Redis"
    broker = "kafka"

    @property
    def url(self) -> str:
        return f"confluentkafka://{self.place.server.netloc}"


class CeleryZookeeper(CeleryOn):
    """kazoo's queue. What a worker has taken is lost with it."""

    label = "Celery, ZooKeeper, results in Redis"
    broker = "zookeeper"

    @property
    def url(self) -> str:
        return f"zookeeper://{self.place.server.netloc}/{self.place.word}"


class CeleryPubsub(CeleryOn):
    """The transport `gcpubsub`."""

    label = "Celery, Pub/Sub, results in Redis"
    broker = "pubsub"

    @property
    def url(self) -> str:
        return f"gcpubsub://projects/{self.place.server.username}"

    def settings(self) -> Mapping[str, str]:
        server = f"{self.place.server.hostname}:{self.place.server.port}"
        return {**super().settings(), "PUBSUB_EMULATOR_HOST": server}
