"""What is measured: one class a system, all with the same verbs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from tests.bench.systems.base import Place, System

# name -> where its class is, and what must be installed for it
_SYSTEMS = {
    "qnb-redis": ("qnb_system:OverRedis", "redis"),
    "qnb-embedded": ("qnb_system:Embedded", "qnb"),
    "celery": ("celery_system:Celery", "celery"),
    "celery-pickle": ("celery_system:CeleryPickle", "celery"),
    "celery-reliable": ("celery_system:CeleryReliable", "celery"),
    "dramatiq": ("dramatiq_system:Dramatiq", "dramatiq"),
    "huey-redis": ("huey_system:HueyRedis", "huey"),
    "huey-sqlite": ("huey_system:HueySqlite", "huey"),
    "executor": ("executor_system:Executor", "concurrent.futures"),
    "ping-pong": ("ping_pong:PingPong", "hiredis"),
    "qnb-amqp": ("qnb_system:OverRabbit", "pika"),
    "qnb-sqs": ("qnb_system:OverSqs", "boto3"),
    "qnb-kafka": ("qnb_system:OverKafka", "confluent_kafka"),
    "qnb-zookeeper": ("qnb_system:OverZookeeper", "kazoo"),
    "qnb-pubsub": ("qnb_system:OverPubsub", "google.cloud.pubsub"),
    "raw-amqp": ("raw_rabbit:RawRabbit", "pika"),
    "raw-sqs": ("raw_sqs:RawSqs", "boto3"),
    "raw-kafka": ("raw_kafka:RawKafka", "confluent_kafka"),
    "raw-zookeeper": ("raw_zookeeper:RawZookeeper", "kazoo"),
    "raw-pubsub": ("raw_pubsub:RawPubsub", "google.cloud.pubsub"),
    "celery-amqp": ("celery_brokers:CeleryRabbit", "celery"),
    "celery-sqs": ("celery_brokers:CelerySqs", "celery"),
    "celery-kafka": ("celery_brokers:CeleryKafka", "celery"),
    "celery-zookeeper": ("celery_brokers:CeleryZookeeper", "celery"),
    "celery-pubsub": ("celery_brokers:CeleryPubsub", "celery"),
}


def system_class(name: str) -> type[System]:
    """The class of a system."""
    module, _, kind = _SYSTEMS[name][0].partition(":")
    found = getattr(importlib.import_module(f"tests.bench.systems.{module}"), kind)
    assert issubclass(found, System)
    return found


def installed(name: str) -> bool:
    """Whether this system can be measured here."""
    module = _SYSTEMS[name][1]
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package it is in
        return False


def names() -> Sequence[str]:
    """All systems."""
    return list(_SYSTEMS)


__all__ = ["Place", "System", "installed", "names", "system_class"]
