"""The group of workers: nothing is lost or stuck while members come, work for long, share, and go."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from qnb.brokers.base import Delivery
from qnb.brokers.kafka.broker import KafkaBroker
from qnb.brokers.kafka.consumer import KafkaConsumer
from qnb.message import Envelope
from tests.services import with_options


def take(consumer: KafkaConsumer, count: int, within: float = 15.0) -> list[Delivery]:
    got: list[Delivery] = []
    deadline = time.monotonic() + within
    while len(got) < count and time.monotonic() < deadline:
        got += consumer.receive_many(count - len(got), 0.5)
    return got


def numbered(count: int, queue: str = "q") -> list[Envelope]:
    return [Envelope(queue, b"%d" % number) for number in range(count)]


def test_long_work_does_not_end_the_membership(url: str) -> None:
    """The thread that polls does not wait for tasks: what librdkafka calls max.poll.interval is never over."""
    broker = KafkaBroker(with_options(url, **{"max.poll.interval.ms": 2000}, lease=1.5))
    broker.publish_many(numbered(1))
    consumer = broker.consume(["q"], prefetch=1)
    [held] = take(consumer, 1)
    consumer.extend_many([held], 60)
    assigned = consumer._member.assigned
    time.sleep(4.0)  # twice that interval: only its end would show
    assert consumer._member.assigned == assigned
    consumer.ack_many([held])
    assert broker.depth("q") == 0
    broker.close()


def test_one_that_works_for_long_does_not_sit_on_what_waits(broker: KafkaBroker) -> None:
    """Its partitions hold half of the messages; the idle one gets them all the same."""
    busy, idle = broker.consume(["q"], prefetch=1), broker.consume(["q"], prefetch=100)
    assert busy.receive_many(1, 0.2) == idle.receive_many(1, 0.2) == []
    broker.publish_many(numbered(40))
    assert len(take(busy, 1)) == 1
    assert len(take(idle, 39)) == 39


def test_members_come_and_go_and_nothing_is_lost(url: str, broker: KafkaBroker) -> None:
    total, seen, lock = 1200, Counter[bytes](), threading.Lock()
    done = threading.Event()

    def work() -> None:
        mine = KafkaBroker(url)
        while not done.is_set():
            consumer = mine.consume(["q"], prefetch=20)
            until = time.monotonic() + 2.0
            while not done.is_set() and time.monotonic() < until:
                got = consumer.receive_many(10, 0.1)
                with lock:
                    seen.update(delivery.body for delivery in got)
                    if len(seen) == total:
                        done.set()
                consumer.ack_many(got)
            consumer.close()
        mine.close()

    broker.publish_many(numbered(total // 2))
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(total // 2, total, 100):
        broker.publish_many([Envelope("q", b"%d" % number) for number in range(start, start + 100)])
        done.wait(0.3)
    in_time = done.wait(100)
    done.set()
    assert in_time, f"{len(seen)} of {total}"
    for thread in threads:
        thread.join(20)
    assert set(seen) == {b"%d" % number for number in range(total)}
    assert broker.depth("q") == 0


def test_what_is_held_moves_along_when_its_partition_goes(broker: KafkaBroker) -> None:
    """The newcomer gets half of the partitions, and none of what the first one works on."""
    broker.publish_many(numbered(16))
    first, second = broker.consume(["q"], prefetch=100), broker.consume(["q"], prefetch=100)
    held = take(first, 16)
    assert len(held) == 16
    assert second.receive_many(10, 3.0) == []
    first.ack_many(held)
    assert second.receive_many(10, 1.0) == []
    assert broker.depth("q") == 0


def test_more_workers_than_partitions_grow_them(url: str) -> None:
    broker = KafkaBroker(with_options(url, partitions=1))
    consumers = [broker.consume(["q"], prefetch=1) for _ in range(2)]
    deadline = time.monotonic() + 30
    while broker._topics.known(broker._names.topic("q")) < 2 and time.monotonic() < deadline:
        for consumer in consumers:
            consumer.receive_many(1, 0.2)
        broker._topics.refresh()
    assert broker._topics.known(broker._names.topic("q")) == 2
    broker.close()


def test_partitions_that_a_topic_grows_by_are_read_at_once(url: str) -> None:
    """Whenever librdkafka would look for them by itself."""
    broker = KafkaBroker(with_options(url, **{"topic.metadata.refresh.interval.ms": 300_000}))
    broker.publish_many(numbered(8))
    consumer = broker.consume(["q"], prefetch=100)
    assert len(take(consumer, 8)) == 8
    topic = broker._names.topic("q")
    consumer._keeper._grow(topic, broker._topics.count(topic))
    assert broker._topics.count(topic) == 16
    broker.publish_many(numbered(32))
    assert len(take(consumer, 32, within=30)) == 32
    broker.close()


def test_more_workers_than_may_have_partitions_are_warned_of(url: str, caplog: pytest.LogCaptureFixture) -> None:
    broker = KafkaBroker(with_options(url, partitions=1, max_partitions=1))
    consumers = [broker.consume(["q"], prefetch=1) for _ in range(2)]
    deadline = time.monotonic() + 30
    while "fewer partitions (1) than workers" not in caplog.text and time.monotonic() < deadline:
        for consumer in consumers:
            consumer.receive_many(1, 0.2)
    assert "max_partitions" in caplog.text
    broker.close()


def test_a_message_that_is_worked_on_for_long_does_not_keep_the_ledger_long(broker: KafkaBroker) -> None:
    """It is written again at the end of its partition, and what is finished after it can be committed."""
    broker.publish_many(numbered(1))
    consumer = broker.consume(["q"], prefetch=2000)
    [held] = take(consumer, 1)
    consumer.extend_many([held], 600)
    for _ in range(9):
        broker.publish_many(numbered(1000))
        consumer.ack_many(take(consumer, 1000))
    deadline = time.monotonic() + 10
    longest = 10_000
    while longest > 600 and time.monotonic() < deadline:
        time.sleep(0.05)
        longest = max(part.ledger.out_of_order for part in consumer._shelf.parts.values())
    assert longest <= 600
    assert broker.depth("q") == 0
    consumer.ack_many([held])
    consumer.close()
    again = broker.consume(["q"], prefetch=10)
    assert again.receive_many(1, 2.0) == []
