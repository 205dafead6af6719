"""The reader of the bus, when its client reads no more."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from qnb.brokers.kafka.broker import KafkaBroker
from qnb.brokers.kafka.bus import KafkaBus
from qnb.brokers.kafka.reader import Reader
from qnb.message import Note


@pytest.fixture
def bus(broker: KafkaBroker) -> KafkaBus:
    return broker.bus()


def notes(*numbers: int) -> list[Note]:
    return [Note("me", "event", b"%d" % number) for number in numbers]


def test_a_client_that_stands_still_is_replaced(bus: KafkaBus) -> None:
    """It reads on where it was: nothing is missed, nothing comes twice."""
    inbox = bus.join("me")
    place = bus._place("me")
    bus.post_many(notes(1))
    assert list(inbox.receive_many(9, 20.0)) == notes(1)
    reader, stopped = bus._reader, threading.Event()

    def turn(consumer: Consumer) -> None:
        consumer.pause([TopicPartition(*place)])  # here, for no other thread may come near it
        del reader._turn  # type: ignore[method-assign]
        stopped.set()

    reader._turn = turn  # type: ignore[method-assign]
    assert stopped.wait(20.0)
    bus.post_many(notes(2, 3))
    assert inbox.receive_many(9, 0.5) == []
    reader.wait(place, bus._ends(place), 4.0)
    assert [*inbox.receive_many(9, 20.0), *inbox.receive_many(9, 0.3)] == notes(2, 3)


def test_an_error_of_the_client_ends_nothing(bus: KafkaBus, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, raised = bus.join("me"), threading.Event()
    whole = Reader._turn

    def turn(self: Reader, consumer: Any) -> None:
        if not raised.is_set():
            raised.set()
            raise KafkaException("some day")
        whole(self, consumer)

    monkeypatch.setattr(Reader, "_turn", turn)
    assert raised.wait(20.0)
    bus.post_many(notes(1))
    assert list(inbox.receive_many(9, 20.0)) == notes(1)
