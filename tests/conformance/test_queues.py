"""Queues: what is published arrives, in order and once; what is settled stays settled."""

from __future__ import annotations

import time

import pytest

from qnb.brokers.base import QueueSpec
from qnb.errors import PayloadTooLarge, PublishFailed
from qnb.message import Envelope
from tests.conformance.help import Later, Place, bodies, messages, nothing, numbered, take, waits


def test_published_messages_arrive_in_order(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(3))
    got = take(place.consumer(broker), 3)
    assert place.order(bodies(got)) == [b"0", b"1", b"2"]
    assert [(delivery.queue, delivery.deliveries) for delivery in got] == [("q", 1)] * 3


def test_publishing_nothing_is_no_error(place: Place) -> None:
    broker = place.broker()
    broker.publish_many([])
    assert waits(broker, "q", 0)


def test_publish_returns_when_the_broker_has_it(place: Place) -> None:
    """Another connection sees it at once: it is not on its way, it is there."""
    broker, other = place.broker(), place.broker()
    for number in range(1, 21):
        broker.publish_many(messages(b"x"))
        assert waits(other, "q", number)


def test_a_large_batch_arrives_whole(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(2500))
    consumer = place.consumer(broker, prefetch=5000)
    got = take(consumer, 2500, within=60, limit=300)
    assert place.order(bodies(got)) == place.order(b"%d" % number for number in range(2500))
    consumer.ack_many(got)
    assert nothing(consumer, 0)


@pytest.mark.parametrize("body", [b"", b"\0", bytes(range(256)), b"\r\n:'\"{}", "ünïcode".encode()])
def test_bodies_are_bytes(place: Place, body: bytes) -> None:
    broker = place.broker()
    broker.publish_many(messages(body, body, queue="strange name: ü/{x}*"))
    [first, second] = take(place.consumer(broker, "strange name: ü/{x}*"), 2)
    assert (first.body, second.body, first.queue) == (body, body, "strange name: ü/{x}*")


def test_receive_does_not_wait_to_fill_up(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker)
    broker.publish_many(numbered(3))
    begun = time.monotonic()
    assert len(take(consumer, 1, limit=2)) == 1
    assert len(consumer.receive_many(1000, 10.0)) == 2
    assert time.monotonic() - begun < place.late


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_receive_gives_up_after_its_timeout(place: Place, timeout: float) -> None:
    consumer = place.consumer(place.broker())
    consumer.receive_many(1, 0)
    begun = time.monotonic()
    assert consumer.receive_many(1, timeout) == []
    assert timeout - 0.02 <= time.monotonic() - begun < timeout + place.late


def test_a_waiting_consumer_is_told_at_once(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(place.broker())
    waiting = Later(lambda: consumer.receive_many(1, 30.0))
    time.sleep(0.2)
    broker.publish_many(messages(b"x"))
    assert bodies(waiting.result(40)) == [b"x"]
    assert waiting.seconds < 3.0  # at once, on a busy machine; it waits for 30


def test_acks_out_of_order(place: Place) -> None:
    broker = place.broker(lease=place.lease)
    broker.publish_many(numbered(6))
    consumer = place.consumer(broker)
    got = take(consumer, 6)
    consumer.ack_many([got[4], got[1]])
    consumer.ack_many([got[0]])
    consumer.close()
    again = place.consumer(broker)
    rest = take(again, 3)
    assert sorted(bodies(rest)) == [b"2", b"3", b"5"]
    again.ack_many(rest)
    assert nothing(again, place.lease + 0.3), "not after the lease either"


def test_release_gives_it_to_anyone_at_once_and_counts_for_nothing(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(2))
    first, second = place.consumer(broker), place.consumer(broker)
    for _ in range(5):
        got = take(first, 2)
        begun = time.monotonic()
        first.release_many(got)
        got = take(second, 2)
        assert time.monotonic() - begun < place.late
        assert sorted((delivery.body, delivery.deliveries) for delivery in got) == [(b"0", 1), (b"1", 1)]
        second.release_many(got)


def test_release_with_delay(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(2))
    consumer = place.consumer(broker)
    got = take(consumer, 2)
    begun = time.monotonic()
    consumer.release_many(got, 0.5)
    assert waits(broker, "q", 2)
    again = take(consumer, 2)
    assert 0.45 < time.monotonic() - begun < 0.5 + place.late
    assert sorted((delivery.body, delivery.deliveries) for delivery in again) == [(b"0", 1), (b"1", 1)]


def test_reject_keeps_it_aside_with_the_reason(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(3))
    consumer = place.consumer(broker)
    got = take(consumer, 3)
    consumer.reject_many(got[:1], "bad signature")
    consumer.reject_many(got[1:2], "lost: signal 9 · ü")
    consumer.ack_many(got[2:])
    assert waits(broker, "q", 0)
    assert nothing(consumer)
    found = broker.dead_letters("q")
    assert {(letter.queue, letter.body, letter.reason) for letter in found} == {
        ("q", b"0", "bad signature"),
        ("q", b"1", "lost: signal 9 · ü"),
    }
    assert [letter.body for letter in broker.dead_letters("q", limit=1)] == [b"1"], "the newest"
    assert len(broker.dead_letters("q")) == 2, "they stay"
    assert broker.dead_letters("another") == []


def test_settling_twice_or_nothing_is_no_error(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(1))
    consumer = place.consumer(broker)
    got = take(consumer, 1)
    for _ in range(2):
        consumer.ack_many(got)
    consumer.release_many(got)
    consumer.reject_many(got, "no")
    consumer.extend_many(got, 5)
    for settle in (consumer.ack_many, consumer.release_many):
        settle([])
    consumer.reject_many([], "no")
    consumer.extend_many([], 1)
    assert nothing(consumer)
    assert waits(broker, "q", 0)
    assert list(broker.dead_letters("q")) == []


def test_depth_counts_what_waits(place: Place) -> None:
    broker = place.broker()
    assert waits(broker, "nobody knows it", 0)
    broker.publish_many([*numbered(4), Envelope("q", b"later", delay=30), Envelope("q", b"urgent", priority=9)])
    assert waits(broker, "q", 6)
    consumer = place.consumer(broker)
    got = take(consumer, 3, limit=3)
    assert waits(broker, "q", 3), "leased ones do not wait"
    consumer.ack_many(got[:1])
    consumer.release_many(got[1:])
    assert waits(broker, "q", 5)


def test_purge_drops_what_waits(place: Place) -> None:
    broker = place.broker()
    assert broker.purge("q") == 0
    broker.publish_many(numbered(3))
    consumer = place.consumer(broker)
    held = take(consumer, 2, limit=2)
    broker.publish_many([*numbered(4), Envelope("q", b"later", delay=0.6), Envelope("q", b"urgent", priority=9)])
    assert broker.purge("q") in ({7} if place.case.counts_delayed else {6, 7})
    assert waits(broker, "q", 0)
    assert nothing(consumer, 0.9)
    consumer.release_many(held)
    assert sorted(bodies(take(consumer, 2))) == [b"0", b"1"], "leased ones are not touched"


def test_queues_are_listed(place: Place) -> None:
    broker = place.broker()
    assert list(broker.queues()) == []
    broker.declare(QueueSpec("alpha"))
    broker.declare(QueueSpec("alpha"))
    broker.publish_many([*messages(b"x", queue="beta"), Envelope("alps", b"x", delay=30)])
    assert list(broker.queues()) == ["alpha", "alps", "beta"]
    assert list(broker.queues("al")) == ["alpha", "alps"]


def test_remove_leaves_nothing(place: Place) -> None:
    broker = place.broker()
    broker.publish_many([*numbered(3), Envelope("q", b"later", delay=0.1)])
    with_dead = place.consumer(broker)
    with_dead.reject_many(take(with_dead, 1, limit=1), "no")
    with_dead.close()
    broker.remove("q")
    broker.remove("q")
    assert (list(broker.queues()), list(broker.dead_letters("q"))) == ([], [])
    assert waits(broker, "q", 0)
    consumer = place.consumer(broker)
    assert nothing(consumer)
    broker.publish_many(messages(b"new"))
    assert bodies(take(consumer, 1)) == [b"new"]


def test_a_consumer_outlives_the_removal_of_its_queue(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(1))
    consumer = place.consumer(broker)
    held = take(consumer, 1)
    waiting = Later(lambda: take(consumer, 1, within=10))
    time.sleep(0.1)
    broker.remove("q")
    broker.publish_many(messages(b"new"))
    assert bodies(waiting.result()) == [b"new"]
    consumer.ack_many(held)


def test_one_consumer_takes_from_several_queues(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker, "a", "b", "c")
    assert nothing(consumer, 0)
    waiting = Later(lambda: take(consumer, 9))
    for queue in "abc":
        broker.publish_many(numbered(3, queue))
    got = waiting.result()
    assert sorted((d.queue, d.body) for d in got) == [(queue, b"%d" % n) for queue in "abc" for n in range(3)]
    consumer.ack_many(got)
    assert all(waits(broker, queue, 0) for queue in "abc")


def test_prefixes_keep_places_apart(place: Place) -> None:
    one, two = place.broker(prefix="one"), place.broker(prefix="two")
    one.publish_many(messages(b"x"))
    inbox, other = place.inbox(one, "peer"), place.inbox(two, "peer")
    inbox.beat(b"here")
    assert (list(two.queues()), list(two.bus().peers())) == ([], [])
    assert waits(one, "q", 1)
    assert waits(two, "q", 0)
    assert nothing(place.consumer(two))
    assert other.receive_many(1, 0) == []
    assert bodies(take(place.consumer(one), 1)) == [b"x"]


def test_sizes_up_to_the_limit(place: Place) -> None:
    broker = place.broker(max_message=5000)
    assert broker.features.limits.message_bytes == 5000
    sizes = [4999, 5000]
    broker.publish_many(messages(*(b"x" * size for size in sizes)))
    with pytest.raises(PayloadTooLarge, match=r"5,?001.*5,?000"):
        broker.publish_many(messages(b"x" * 5001))
    consumer = place.consumer(broker)
    assert [len(body) for body in bodies(take(consumer, 2))] == sizes
    assert nothing(consumer, 0)


def test_a_batch_with_one_too_large_sends_nothing(place: Place) -> None:
    broker = place.broker(max_message=100)
    with pytest.raises(PayloadTooLarge):
        broker.publish_many(messages(b"a", b"x" * 101, b"b"))
    assert waits(broker, "q", 0)


def test_a_half_failed_batch_names_what_failed(place: Place) -> None:
    if place.case.spoil is None:
        pytest.skip(f"{place.case.label}: takes a batch whole or not at all")
    broker = place.broker()
    place.case.spoil(place.url, "spoilt")
    batch = [*messages(b"1", queue="spoilt"), *messages(b"2"), *messages(b"3", queue="spoilt"), *messages(b"4")]
    with pytest.raises(PublishFailed) as caught:
        broker.publish_many(batch)
    assert caught.value.failed == [batch[0], batch[2]]
    consumer = place.consumer(broker)
    assert bodies(take(consumer, 2)) == [b"2", b"4"]
    assert nothing(consumer, 0)


def test_a_megabyte(place: Place) -> None:
    broker = place.broker()
    size = min(3 * 2**20, broker.features.limits.message_bytes or 3 * 2**20)
    body = (bytes(range(256)) * 4096 * 3)[:size]
    broker.publish_many(messages(body, b"small", body))
    got = take(place.consumer(broker), 3)
    assert place.order(bodies(got)) == place.order([body, b"small", body])
