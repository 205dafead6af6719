"""How a consumer on RabbitMQ hears of messages, one at a time and many at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qnb.brokers.rabbitmq import consumer as consumer_module
from qnb.brokers.rabbitmq import taps
from qnb.brokers.rabbitmq.broker import RabbitBroker
from qnb.brokers.rabbitmq.consumer import RabbitConsumer
from qnb.message import Envelope
from tests.conformance.help import Later
from tests.contract.conftest import until
from tests.servers.rabbitmq import RabbitServer
from tests.services import Services, with_options

NORMAL = ("q", False)


@pytest.fixture
def broker(services: Services) -> Iterator[RabbitBroker]:
    with closing(RabbitBroker(with_options(services.common(RabbitServer).url, prefix=services.word(), young=0))) as one:
        yield one


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bells hang on however busy the machine is."""
    monkeypatch.setattr(consumer_module, "IDLE_SECONDS", 60.0)
    monkeypatch.setattr(taps, "_OWED_SECONDS", 60.0)


def ring(broker: RabbitBroker, consumer: Any, body: bytes) -> None:
    """A message that comes to who waits for it, and is acked."""
    waiting = Later(lambda: consumer.receive_many(100, 20.0))
    until(lambda: NORMAL in consumer._bells)
    broker.publish_many([Envelope("q", body)])
    [came] = waiting.result(20)
    assert (came.body, came.deliveries) == (body, 1)
    consumer.ack_many([came])


@pytest.mark.usefixtures("patient")
def test_one_after_the_other_comes_by_one_and_the_same_subscription(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool]] = []
    subscribe = RabbitConsumer._subscribe

    def counted(self: Any, channel: Any, queue: str, urgent: bool, count: int) -> str:
        made.append((queue, urgent))
        return subscribe(self, channel, queue, urgent, count)

    monkeypatch.setattr(RabbitConsumer, "_subscribe", counted)
    consumer = broker.consume(["q"], prefetch=100)
    for number in range(10):
        ring(broker, consumer, b"%d" % number)
    assert made.count(NORMAL) == 1


@pytest.mark.usefixtures("patient")
def test_many_at_once_come_in_order_and_not_one_by_one(broker: RabbitBroker) -> None:
    consumer = broker.consume(["q"], prefetch=1000)
    ring(broker, consumer, b"alone")
    bodies = [b"%d" % number for number in range(400)]
    broker.publish_many([Envelope("q", body) for body in bodies])
    batches = []
    while sum(map(len, batches)) < len(bodies):
        batches.append(consumer.receive_many(1000, 20.0))
        assert batches[-1], "the others never came"
        consumer.ack_many(batches[-1])
    assert [(came.body, came.deliveries) for batch in batches for came in batch] == [(body, 1) for body in bodies]
    assert len(batches) < 40


def test_who_does_not_listen_any_more_is_rung_for_no_longer(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "IDLE_SECONDS", 60.0)
    gone, other = broker.consume(["q"], prefetch=100), broker.consume(["q"], prefetch=100)
    ring(broker, gone, b"first")
    broker.publish_many([Envelope("q", b"second")])
    [came] = other.receive_many(1, 20.0)
    assert (came.body, came.deliveries) == (b"second", 1)


def test_what_rang_when_nobody_listened_any_more_goes_to_others(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "IDLE_SECONDS", 60.0)
    gone = broker.consume(["q"], prefetch=100)
    assert gone.receive_many(1, 0.1) == []
    broker.publish_many([Envelope("q", b"x")])
    until(lambda: bool(gone._ledger.buffer))
    for name, seconds in (("IDLE_SECONDS", 0.0), ("_STRAY_SECONDS", 0.1)):
        monkeypatch.setattr(consumer_module, name, seconds)
    gone._link.post(gone._unhang_idle)
    [came] = broker.consume(["q"], prefetch=100).receive_many(1, 20.0)
    assert (came.body, came.deliveries) == (b"x", 1)
