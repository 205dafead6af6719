"""Kafka through confluent-kafka: an idempotent producer, up to 500 records a read, one commit for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.bench.systems.raw import RawLoop, message, number_of, place_of

BATCH = 500


def producer(address: str) -> Producer:
    """It gathers records for 5 ms, as is its default."""
    settings = {"bootstrap.servers": address, "enable.idempotence": True, "queue.buffering.max.messages": 1_000_000}
    return Producer(settings)


def take(consumer: Consumer) -> list[Any]:
    """What is there, waiting for the first: `consume` alone would wait until it has all it may bring."""
    first = consumer.poll(1.0)
    records = [first, *consumer.consume(BATCH - 1, 0)] if first is not None else []
    return [record for record in records if record.error() is None]


class RawKafka(RawLoop):
    """Two topics of four partitions and one; the worker is a group of one."""

    label = "raw confluent-kafka, an idempotent record a task, an outcome record each"
    broker = "kafka"

    @property
    def address(self) -> str:
        return self.place.server.netloc

    def prepare(self) -> None:
        topics = [NewTopic(f"{self.place.word}-tasks", 4, 1), NewTopic(f"{self.place.word}-outcomes", 1, 1)]
        admin = AdminClient({"bootstrap.servers": self.address})
        for made in admin.create_topics(topics).values():
            made.result()

    def connect(self) -> None:
        self.producer = producer(self.address)
        self.consumer = Consumer({"bootstrap.servers": self.address, "group.id": self.place.word})
        self.consumer.assign([TopicPartition(f"{self.place.word}-outcomes", 0, 0)])
        self.tasks = f"{self.place.word}-tasks"

    def publish(self, numbers: Sequence[int]) -> None:
        produce, topic = self.producer.produce, self.tasks
        for number in numbers:
            produce(topic, message(number))
        if len(numbers) == 1:
            self.producer.flush()  # at once, not after 5 ms

    def collect(self, count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            found += [number_of(record.value()) for record in take(self.consumer)]
        assert self.producer.flush(60) == 0
        return found


def serve(url: str) -> None:
    """The worker's half."""
    place = place_of(url)
    settings = {"group.id": f"{place.word}-workers", "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({"bootstrap.servers": place.server.netloc, **settings})
    consumer.subscribe([f"{place.word}-tasks"])
    sender, topic = producer(place.server.netloc), f"{place.word}-outcomes"
    while True:
        records = take(consumer)
        for record in records:
            sender.produce(topic, record.value())
        if records:
            sender.flush()  # before their commit, so that none is lost
            consumer.commit(asynchronous=True)


if __name__ == "__main__":
    serve(sys.argv[1])
