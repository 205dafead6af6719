"""Delayed messages: held here when due soon, left to the server's deadlines otherwise."""

from __future__ import annotations

import time

from qnb.brokers.pubsub import later as pubsub_later
from qnb.message import Envelope
from tests.conformance.help import Later, bodies, messages, nothing, take
from tests.servers.pubsub_double import Double, Subscription
from tests.unit.pubsub.conftest import Open


def _waiting(double: Double) -> Subscription:
    return next(each for name, each in double._subscriptions.items() if name.endswith("+later"))


def _until(double: Double, count: int) -> list[float]:
    """Seconds until the server gives each delayed message out again, once all are leased."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with double._changed:
            ends = [each.until for each in _waiting(double).messages.values() if each.until is not None]
        if len(ends) == count:
            return sorted(end - time.monotonic() for end in ends)
        time.sleep(0.01)
    raise AssertionError("not pulled")


def test_what_is_due_later_is_left_to_the_server(double: Double, broker: Open) -> None:
    opened = broker()
    opened.publish_many([Envelope("q", b"%d" % delay, delay=delay) for delay in (3, 100, 5000)])
    opened.consume(["q"], prefetch=1)
    deadline = time.monotonic() + 5
    while (ends := _until(double, 3))[1] < 20 and time.monotonic() < deadline:
        time.sleep(0.01)  # the first deadline is the subscription's own
    soon, later, latest = ends
    assert soon <= 10, "held here: the subscription's own deadline covers this process's death"
    assert 90 < later < 100, "comes back a little before it is due"
    assert 590 < latest <= 600, "the longest that the server has"


def test_what_came_back_is_delivered_when_it_is_due(broker: Open) -> None:
    pubsub_later_near = pubsub_later.NEAR_SECONDS
    pubsub_later.NEAR_SECONDS = 0.5  # so that it is left to the server for a second or two
    try:
        opened = broker()
        consumer = opened.consume(["q"], prefetch=1)
        waiting = Later(lambda: take(consumer, 1, within=10))
        begun = time.monotonic()
        opened.publish_many(messages(b"x", delay=2.2))
        assert bodies(waiting.result()) == [b"x"]
        assert time.monotonic() - begun > 2.1
    finally:
        pubsub_later.NEAR_SECONDS = pubsub_later_near


def test_more_than_is_held(broker: Open) -> None:
    before = pubsub_later.NEAR_MESSAGES
    pubsub_later.NEAR_MESSAGES = 10
    try:
        opened = broker()
        consumer = opened.consume(["q"], prefetch=100)
        opened.publish_many([Envelope("q", b"%d" % number, delay=1.0) for number in range(50)])
        assert len(set(bodies(take(consumer, 50, within=10)))) == 50
    finally:
        pubsub_later.NEAR_MESSAGES = before


def test_without_consumers_what_was_held_goes_back(double: Double, broker: Open) -> None:
    opened = broker()
    consumer = opened.consume(["q"], prefetch=1)
    opened.publish_many(messages(b"x", delay=3.0))
    _until(double, 1)
    consumer.close()
    begun = time.monotonic()
    while _waiting(double).messages and any(each.until for each in _waiting(double).messages.values()):
        assert time.monotonic() - begun < 2.5, "released, and not only after the deadline"
        time.sleep(0.01)
    other = broker().consume(["q"], prefetch=1)
    assert bodies(take(other, 1)) == [b"x"]


def test_a_count_survives_the_delay(broker: Open) -> None:
    opened = broker(lease=0.2)
    opened.publish_many(messages(b"x"))
    consumer = opened.consume(["q"], prefetch=1)
    take(consumer, 1)
    [again] = take(consumer, 1)
    assert again.deliveries == 2
    consumer.release_many([again], 0.1)
    assert [delivery.deliveries for delivery in take(consumer, 1)] == [2]


def test_a_purge_drops_what_is_delayed_for_long(broker: Open) -> None:
    opened = broker()
    consumer = opened.consume(["q"], prefetch=10)
    opened.publish_many([Envelope("q", b"soon", delay=0.5), Envelope("q", b"late", delay=6.0)])
    assert nothing(consumer, 0.2)
    opened.purge("q")
    assert nothing(consumer, 0.7)
    opened.publish_many(messages(b"new", delay=0.2))
    assert bodies(take(consumer, 1)) == [b"new"]
