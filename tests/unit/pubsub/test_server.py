"""What Pub/Sub is told, and what is left there."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from qnb.brokers.base import QueueSpec
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.link import CREATE_SUBSCRIPTION, GET_SUBSCRIPTION, PUBLISH, Method
from qnb.brokers.pubsub.shelf import batches, message
from qnb.message import Envelope, Note
from tests.conformance.help import Later, bodies, messages, nothing, numbered, read, take
from tests.servers.pubsub_double import Double
from tests.unit.pubsub.conftest import Open


def test_nothing_is_left_behind(double: Double, broker: Open) -> None:
    opened = broker()
    opened.publish_many([*numbered(3), Envelope("q", b"later", delay=30), Envelope("q", b"urgent", priority=9)])
    consumer = opened.consume(["q"], prefetch=10)
    consumer.reject_many(take(consumer, 1, limit=1), "no")
    bus = opened.bus()
    inbox = bus.join("me")
    bus.post_many([Note("me", "event", b"x")])
    assert read(inbox, 1)
    assert [presence.peer for presence in broker().bus().peers()] == []
    consumer.close()
    opened.remove("q")
    opened.close()
    assert [name for name in double.names if not name.startswith("qnb++~")] == []


def test_the_asker_leaves_nothing_either(double: Double, broker: Open) -> None:
    asked, asker = broker(), broker()
    asked.bus().join("me").beat()
    assert [presence.peer for presence in asker.bus().peers()] == ["me"]
    asker.close()
    asked.close()
    assert double.names == []


def test_a_mailbox_expires(double: Double, broker: Open) -> None:
    broker().bus().join("me")
    [name] = [name for name in double.names if name.startswith("qnb++me+")]
    assert double.spec(name).expiration_policy.ttl.seconds == 86_400


def test_options_of_subscriptions(double: Double, broker: Open) -> None:
    broker(ordering="true", exactly_once="true", retention=3600).declare(QueueSpec("q", lease=42.0))
    spec = double.spec("qnb+q")
    assert spec.enable_message_ordering
    assert spec.enable_exactly_once_delivery
    assert spec.message_retention_duration.seconds == 3600
    assert spec.ack_deadline_seconds == 43, "the server's outlasts the one kept here"
    assert spec.dead_letter_policy.dead_letter_topic.endswith("/qnb+q+dead")
    assert spec.HasField("expiration_policy")
    assert not spec.expiration_policy.HasField("ttl"), "queues never expire"


def test_the_lease_of_a_queue_may_be_changed(double: Double, broker: Open) -> None:
    broker().declare(QueueSpec("q"))
    broker().declare(QueueSpec("q", lease=60.0))
    assert double.spec("qnb+q").ack_deadline_seconds == 61
    assert broker().consume(["q"], prefetch=1).lease == 60.0


def test_a_topic_made_anew_gets_its_subscription_back(broker: Open) -> None:
    """Somebody deleted the topic alone: its subscription stays, and gets nothing that is published from then on."""
    opened = broker()
    opened.publish_many(messages(b"old"))
    link = opened._link
    link.drop(*_delete_topic(link.topic("qnb+q")))
    opened.publish_many(messages(b"new"))
    found = link.call(GET_SUBSCRIPTION, types.GetSubscriptionRequest(subscription=link.subscription("qnb+q")))
    assert found.topic == link.topic("qnb+q")
    assert bodies(take(opened.consume(["q"], prefetch=1), 1)) == [b"new"]


def _delete_topic(name: str) -> tuple[object, object]:
    from qnb.brokers.pubsub.link import DELETE_TOPIC

    return DELETE_TOPIC, types.DeleteTopicRequest(topic=name)


def test_removed_by_another_process(broker: Open) -> None:
    opened, other = broker(), broker()
    opened.publish_many(messages(b"old"))
    consumer = opened.consume(["q"], prefetch=10)
    take(consumer, 1)
    waiting = Later(lambda: take(consumer, 1, within=10))
    other.remove("q")
    opened.publish_many(messages(b"new"))
    assert bodies(waiting.result()) == [b"new"]


def test_removed_while_it_is_made(broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its topic was there, and that of its dead letters too; its subscription cannot be made without them."""
    opened, other = broker(), broker()
    create, removed = opened._link.create, []

    def create_late(method: Method, request: Any) -> bool:
        if method is CREATE_SUBSCRIPTION and request.name.endswith("+q") and not removed:
            removed.append(request.name)
            other.remove("q")
        return create(method, request)

    monkeypatch.setattr(opened._link, "create", create_late)
    opened.publish_many(messages(b"x"))
    assert removed
    assert bodies(take(opened.consume(["q"], prefetch=1), 1)) == [b"x"]


def test_foreign_messages_are_delivered_as_they_are(broker: Open) -> None:
    opened = broker()
    opened.declare(QueueSpec("q"))
    foreign = types.PubsubMessage(data=b"\xffnot ours", attributes={"kind": "x", "qnb-n": "many"})
    opened._link.call(PUBLISH, types.PublishRequest(topic=opened._link.topic("qnb+q"), messages=[foreign]))
    [got] = take(opened.consume(["q"], prefetch=1), 1)
    assert (got.body, got.deliveries) == (b"\xffnot ours", 1)


def test_batches_fit_into_a_request() -> None:
    assert [len(batch) for batch in batches([message(b"x")] * 2500)] == [1000, 1000, 500]
    assert [len(batch) for batch in batches([message(b"x" * 4_000_000)] * 5)] == [2, 2, 1]
    assert list(batches([])) == []


@pytest.mark.parametrize("lease,told", [(0.3, 1), (0.8, 1), (1.0, 2), (5.0, 6), (700.0, 600)])
def test_the_server_is_told_of_the_lease(double: Double, broker: Open, lease: float, told: int) -> None:
    opened = broker(lease=lease)
    opened.publish_many(messages(b"x"))
    seen: list[int] = []
    modify = double.ModifyAckDeadline
    double._server.stop(0)
    double.ModifyAckDeadline = lambda request, context: (  # type: ignore[method-assign]
        seen.append(request.ack_deadline_seconds),
        modify(request, context),
    )[1]
    double.start()
    take(opened.consume(["q"], prefetch=1), 1)
    assert seen[:1] == ([] if told == 600 else [told]), "600 s is what the subscription gives"


def test_what_nobody_fetches_goes_back_and_counts_for_nothing(broker: Open) -> None:
    """A pull that waited for one receive may bring something when that is over."""
    opened = broker()
    first, second = opened.consume(["q"], prefetch=10), opened.consume(["q"], prefetch=10)
    assert nothing(first, 0.05)
    opened.publish_many(messages(b"x"))
    [got] = take(second, 1)
    assert (got.body, got.deliveries) == (b"x", 1)


def test_what_a_pull_brings_to_a_closed_consumer_goes_back(broker: Open) -> None:
    opened = broker()
    first = opened.consume(["q"], prefetch=10)
    assert nothing(first, 0.05)
    first.close()
    opened.publish_many(messages(b"x"))
    [got] = take(opened.consume(["q"], prefetch=10), 1)
    assert (got.body, got.deliveries) == (b"x", 1)


def test_what_a_pull_brings_to_a_closed_broker_goes_back(broker: Open) -> None:
    opened, other = broker(), broker()
    first = opened.consume(["q"], prefetch=10)
    assert nothing(first, 0.05)
    keeper = opened._keeper
    with keeper._changed:  # it cannot begin to close yet
        closing = Later(opened.close)
        other.publish_many(messages(b"x"))
        time.sleep(0.05)
    closing.result()
    [got] = take(other.consume(["q"], prefetch=10), 1)
    assert (got.body, got.deliveries) == (b"x", 1)


def test_what_reaches_a_process_that_stood_still_goes_back(broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: the server sent it before, and may have given it to another by now."""
    opened = broker()
    consumer = opened.consume(["q"], prefetch=10)
    with monkeypatch.context() as stopped:
        stopped.setattr(opened._keeper, "fresh", lambda: False)
        opened.publish_many(messages(b"x"))
        assert nothing(consumer, 1.0)
    [got] = take(consumer, 1)
    assert got.body == b"x"
    assert got.deliveries <= 4, "each counts, and after ten it would be given up"


def test_a_process_that_stood_still_is_noticed(broker: Open) -> None:
    keeper = broker()._keeper
    assert keeper.fresh()
    keeper._ticked -= 3.0
    assert not keeper.fresh(), "before the thread runs again"
    keeper._tick()
    assert not keeper.fresh(), "and for a moment after it did"
    keeper._doubt_until = time.monotonic()
    assert keeper.fresh()


def test_a_consumer_takes_from_other_queues(broker: Open) -> None:
    opened = broker()
    opened.publish_many([*messages(b"a", queue="a"), *messages(b"b", queue="b")])
    consumer = opened.consume(["a"], prefetch=10)
    held = take(consumer, 1)
    waiting = Later(lambda: take(consumer, 1))
    consumer.take_from(["b"])
    assert bodies(held + waiting.result()) == [b"a", b"b"]
    consumer.ack_many(held)
    opened.publish_many(messages(b"more", queue="a"))
    assert nothing(consumer)
    consumer.take_from([])
    opened.publish_many(messages(b"more", queue="b"))
    assert nothing(consumer)
    consumer.take_from(["a", "b"])
    assert len(take(consumer, 2)) == 2


def test_another_process_learns_of_a_level_by_the_hint(broker: Open) -> None:
    consumer = broker().consume(["q"], prefetch=10)
    waiting = Later(lambda: take(consumer, 1))
    begun = time.monotonic()
    broker().publish_many(messages(b"x", priority=5))
    assert bodies(waiting.result()) == [b"x"]
    assert time.monotonic() - begun < 3


def test_the_server_was_away(double: Double, broker: Open) -> None:
    """A waiting consumer, a publisher and a reader of the bus go on by themselves."""
    opened = broker()
    consumer, inbox = opened.consume(["q"], prefetch=10), opened.bus().join("me")
    opened.publish_many(messages(b"before"))
    held = take(consumer, 1)
    waiting, reading = Later(lambda: take(consumer, 1, within=20)), Later(lambda: read(inbox, 1, within=20))
    double.stop()
    publishing = Later(lambda: opened.publish_many(messages(b"after")))
    acking = Later(lambda: consumer.ack_many(held))
    double.start()
    publishing.result()
    acking.result()
    opened.bus().post_many([Note("me", "event", b"hello")])
    assert bodies(waiting.result()) == [b"after"]
    assert reading.result() == [Note("me", "event", b"hello")]
    consumer.close()
    assert bodies(take(opened.consume(["q"], prefetch=10), 1)) == [b"after"]


def test_away_for_longer_than_the_patience(double: Double, broker: Open) -> None:
    from qnb.errors import BrokerUnavailable

    opened = broker(patience=0.3)
    consumer = opened.consume(["q"], prefetch=10)
    opened.publish_many(messages(b"x"))
    double.stop()
    with pytest.raises(BrokerUnavailable):
        opened.publish_many(messages(b"y"))
    with pytest.raises(BrokerUnavailable):
        take(consumer, 2, within=10)
    double.start()
    assert bodies(take(consumer, 1, within=10)) == [b"x"]


def test_threads_end_with_the_broker(broker: Open) -> None:
    before = {thread.name for thread in threading.enumerate()}
    opened = broker()
    opened.consume(["q"], prefetch=1)
    assert "qnb pubsub keeper" in {thread.name for thread in threading.enumerate()} - before
    opened.close()
    assert "qnb pubsub keeper" not in {thread.name for thread in threading.enumerate()}
