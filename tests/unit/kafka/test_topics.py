"""Topics that are made while the server is away: its admin client is stood in for, lest a test wait for so long."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from qnb.brokers.kafka import topics
from qnb.brokers.kafka.records import Names
from qnb.errors import BrokerError

AWAY, THERE = KafkaError._TRANSPORT, KafkaError.TOPIC_ALREADY_EXISTS


class Returning:
    """It answers anew after `away` seconds, and knows its topics `busy` seconds later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, away: float, busy: float) -> None:
        self.now, self.back, self.ready = 0.0, away, away + busy
        self.asked: set[str] = set()
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(topics, "time", clock)

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.5)

    def create_topics(self, wanted: list[Any], operation_timeout: float) -> dict[str, Future[None]]:
        code = AWAY if self.now < self.back else THERE
        found = {}
        for each in wanted:
            self.asked.add(each.topic)
            found[each.topic] = Future[None]()
            found[each.topic].set_exception(KafkaException(KafkaError(code)))
        return found

    def list_topics(self, timeout: float) -> Any:
        self.now = max(self.now, self.back)  # which was waited for
        there = self.asked if self.now >= self.ready else set()
        return SimpleNamespace(topics={each: SimpleNamespace(error=None, partitions=[0]) for each in there})


def topics_of(admin: Returning) -> topics.Topics:
    options = topics.TopicOptions(replication=1, patience=30.0)
    found = topics.Topics(admin, Names("p"), options, "kafka://there")  # type: ignore[arg-type]
    found.learn(SimpleNamespace(topics={}))
    return found


def test_a_server_that_was_away_for_all_of_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time to find its topics again: not they, but it, was not there."""
    admin = Returning(monkeypatch, away=29.0, busy=15.0)
    names = Names("p")
    found = topics_of(admin)
    found._create([names.topic("q")])
    assert found.known(names.topic("q")) == 1


def test_topics_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Returning(monkeypatch, away=0.0, busy=1000.0)
    with pytest.raises(BrokerError, match=r"p\S*q are not to be had"):
        topics_of(admin)._create([Names("p").topic("q")])
    assert 30 < admin.now < 40
