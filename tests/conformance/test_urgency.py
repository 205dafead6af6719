"""Priority and delay."""

from __future__ import annotations

import time

import pytest

from qnb.errors import Unsupported
from qnb.features import Support
from qnb.message import Envelope
from tests.conformance.help import Later, Place, bodies, messages, nothing, numbered, take, waits


@pytest.fixture
def levels(place: Place) -> Place:
    if place.broker().features.priority is Support.NONE:
        pytest.skip(f"{place.case.label}: has no priority, see test_features")
    return place


@pytest.fixture
def delays(place: Place) -> Place:
    if place.broker().features.delay is Support.NONE:
        pytest.skip(f"{place.case.label}: has no delay, see test_features")
    return place


def test_the_highest_priority_comes_first(levels: Place) -> None:
    broker = levels.broker()
    batch = [
        Envelope("q", b"%d%s" % (priority, turn), priority=priority) for turn in (b"a", b"b") for priority in (0, 9, 3)
    ]
    broker.publish_many(batch)
    consumer = levels.consumer(broker)
    assert bodies(take(consumer, 6, limit=2)) == [b"9a", b"9b", b"3a", b"3b", b"0a", b"0b"]


def test_a_running_consumer_sees_a_level_that_was_never_used(levels: Place) -> None:
    broker = levels.broker()
    consumer = levels.consumer(broker)
    waiting = Later(lambda: consumer.receive_many(10, 30.0))
    time.sleep(0.2)
    broker.publish_many(messages(b"x", priority=5))
    assert bodies(waiting.result(40)) == [b"x"]
    assert waiting.seconds < 3.0  # at once, on a busy machine; it waits for 30
    broker.publish_many([Envelope("q", b"0"), Envelope("q", b"9", priority=9), Envelope("q", b"5", priority=5)])
    got = bodies(take(consumer, 3))
    # The other two may both be on their way already, to reads that waited for them.
    assert got[0] == b"9"
    assert sorted(got[1:]) == [b"0", b"5"]


def test_low_levels_are_served_too(levels: Place) -> None:
    broker = levels.broker()
    consumer = levels.consumer(broker)
    broker.publish_many([*messages(b"x", priority=9), *numbered(3)])
    got = take(consumer, 4, limit=1)
    assert bodies(got) == [b"x", b"0", b"1", b"2"]


def test_what_was_taken_with_a_level_that_is_new_is_handed_out(levels: Place) -> None:
    """All of it at once: on Redis, one claim over both levels found the second without a group."""
    broker = levels.broker()
    consumer = levels.consumer(broker)
    broker.publish_many(messages(b"first", priority=9))
    consumer.ack_many(take(consumer, 1))
    broker.publish_many([*(Envelope("q", b"9%d" % i, priority=9) for i in range(3)), Envelope("q", b"5", priority=5)])
    begun = time.monotonic()
    assert bodies(take(consumer, 4, limit=8)) == [b"90", b"91", b"92", b"5"]
    assert time.monotonic() - begun < levels.lease


@pytest.mark.parametrize("limit", [1, 2])
def test_levels_never_give_more_than_the_limit(levels: Place, limit: int) -> None:
    broker = levels.broker()
    consumer = levels.consumer(broker)
    take(consumer, 1, within=0.1)
    seen: list[bytes] = []
    for number in range(30):
        broker.publish_many([Envelope("q", b"%d" % level, priority=level) for level in (0, 4, 9)])
        got = consumer.receive_many(limit, 1.0)
        assert len(got) <= limit, number
        seen += bodies(got)
        consumer.ack_many(got)
    rest = take(consumer, 90 - len(seen))
    assert len(seen) + len(rest) == 90


def test_priority_survives_release_and_expiry(levels: Place) -> None:
    broker = levels.broker(lease=levels.lease)
    broker.publish_many([Envelope("q", b"low"), Envelope("q", b"high", priority=9)])
    first, second = levels.consumer(broker), levels.consumer(broker)
    first.release_many(take(first, 2), 0.1)
    time.sleep(0.2)
    assert bodies(take(first, 1, limit=1)) == [b"high"]
    low = take(second, 1)
    second.extend_many(low, 30)
    high = take(second, 1, within=levels.lease + levels.late)
    assert bodies(low + high) == [b"low", b"high"]
    second.ack_many(low + high)
    assert waits(broker, "q", 0)


def test_a_waiting_consumer_gets_a_delayed_message_on_time(delays: Place) -> None:
    broker = delays.broker()
    consumer = delays.consumer(broker)
    waiting = Later(lambda: consumer.receive_many(10, 10.0))
    time.sleep(0.1)
    begun = time.monotonic()
    broker.publish_many(messages(b"x", delay=0.6))
    assert bodies(waiting.result()) == [b"x"]
    assert 0.58 < time.monotonic() - begun < 0.6 + delays.late


def test_a_sooner_message_overtakes(delays: Place) -> None:
    broker, other = delays.broker(), delays.broker()
    consumer = delays.consumer(broker)
    other.publish_many(messages(b"now"))  # it is connected when it matters
    assert bodies(take(consumer, 1)) == [b"now"]
    waiting = Later(lambda: take(consumer, 2))
    broker.publish_many(messages(b"late", delay=2.0))
    other.publish_many(messages(b"soon", delay=0.2))
    got = waiting.result()
    assert bodies(got) == [b"soon", b"late"]


def test_delayed_messages_wait_for_a_consumer_that_comes_later(delays: Place) -> None:
    broker = delays.broker()
    broker.publish_many(numbered(3))
    broker.publish_many([Envelope("q", b"later%d" % number, delay=0.1) for number in range(250)])
    assert waits(broker, "q", 253)
    time.sleep(0.15)
    deadline = time.monotonic() + (0 if delays.case.exact_depth else delays.late)
    while not waits(broker, "q", 253):
        assert time.monotonic() < deadline
    consumer = delays.consumer(broker)
    got = take(consumer, 253)
    assert len(set(bodies(got))) == 253
    assert nothing(consumer, 0)


def test_equal_messages_may_be_delayed_together(delays: Place) -> None:
    broker = delays.broker()
    broker.publish_many([Envelope("q", b"same", delay=0.1)] * 5)
    assert len(take(delays.consumer(broker), 5)) == 5


def test_delay_and_priority_together(delays: Place) -> None:
    broker = delays.broker()
    broker.publish_many([Envelope("q", b"low", delay=1.0), Envelope("q", b"high", priority=9, delay=1.0)])
    assert waits(broker, "q", 2)
    consumer = delays.consumer(broker)
    assert nothing(consumer, 0)
    time.sleep(2.2 if delays.case.label == "sqs" else 1.1)  # which counts in whole seconds, from each message on
    assert bodies(take(consumer, 2, within=20)) == [b"high", b"low"]


def test_a_priority_beyond_the_levels_is_refused(place: Place) -> None:
    broker = place.broker()
    for priority in (-1, broker.features.limits.priority_levels):
        with pytest.raises(Unsupported, match="priority"):
            broker.publish_many(messages(b"x", priority=priority))
    assert waits(broker, "q", 0)
