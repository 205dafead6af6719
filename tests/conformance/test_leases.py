"""Leases: a message belongs to whoever took it, for as long as the lease, and then to anyone."""

from __future__ import annotations

import threading
import time
from collections import Counter

from qnb.brokers.base import DEFAULT_LEASE, Consumer, Delivery, QueueSpec
from tests.conformance.help import Later, Place, bodies, messages, nothing, numbered, take, waits
from tests.services import with_options

CONSUMER = """
import sys, time
from qnb.registry import open_broker
broker = open_broker(sys.argv[1])
consumer = broker.consume(["q"], prefetch=10)
got = []
while len(got) < int(sys.argv[2]):
    got += consumer.receive_many(int(sys.argv[2]) - len(got), 5.0)
print(len(got), flush=True)
time.sleep(60)
"""


def test_the_lease_is_known(place: Place) -> None:
    broker = place.broker()
    broker.declare(QueueSpec("short", lease=2.5))
    for queue, lease in (("q", DEFAULT_LEASE), ("short", 2.5)):
        consumer = place.consumer(broker, queue)
        consumer.receive_many(1, 0)
        assert consumer.lease == lease
    consumer = place.consumer(place.broker(lease=place.lease), "another")
    consumer.receive_many(1, 0)
    assert consumer.lease == place.lease


def test_a_waiting_consumer_gets_what_another_let_expire(place: Place) -> None:
    broker = place.broker(lease=place.lease)
    broker.publish_many(numbered(3))
    first, second = place.consumer(broker), place.consumer(broker)
    begun = time.monotonic()
    got = take(first, 3)
    again = take(second, 3, within=place.lease + place.late)
    seconds = time.monotonic() - begun
    assert sorted((d.body, d.deliveries) for d in again) == [(b"%d" % number, 2) for number in range(3)]
    assert seconds > place.lease - 0.1
    assert len(got) == 3


def test_expiry_is_noticed_on_time_by_one_who_had_nothing_to_notice(place: Place) -> None:
    """The idle consumer looked when nothing was leased yet; it must not sleep through the end of a later lease."""
    lease = 1.5
    broker = place.broker(lease=lease)
    first, second = place.consumer(broker), place.consumer(broker)
    assert nothing(second, 0)
    time.sleep(lease * 0.4)
    broker.publish_many(messages(b"x"))
    assert len(take(first, 1)) == 1
    taken = time.monotonic()
    assert bodies(take(second, 1)) == [b"x"]
    assert time.monotonic() - taken > lease - 0.1


def test_a_consumer_gets_back_what_it_let_expire_itself(place: Place) -> None:
    broker = place.broker(lease=place.lease)
    broker.publish_many(messages(b"x"))
    consumer = place.consumer(broker)
    for deliveries in (1, 2, 3):
        [got] = take(consumer, 1)
        assert got.deliveries == deliveries
    consumer.ack_many([got])
    assert nothing(consumer, place.lease + 0.2)


def test_not_before_the_lease_is_over(place: Place) -> None:
    lease = place.lease + 0.6  # long enough for a busy machine to ack in
    broker = place.broker(lease=lease)
    broker.publish_many(numbered(5))
    first, second = place.consumer(broker), place.consumer(broker)
    got = take(first, 5)
    assert nothing(second, 0.6 * lease)
    first.ack_many(got)
    assert nothing(second, lease)


def test_an_extended_lease_lasts(place: Place) -> None:
    lease = place.lease + 0.6
    broker = place.broker(lease=lease)
    broker.publish_many(numbered(2))
    first, second = place.consumer(broker), place.consumer(broker)
    got = take(first, 2)
    waiting = Later(lambda: take(second, 2, within=10))
    for _ in range(4):
        time.sleep(lease / 3)
        first.extend_many(got, lease)
    ended = time.monotonic()
    again = waiting.result()
    assert time.monotonic() - ended > lease - 0.1
    assert sorted((d.body, d.deliveries) for d in again) == [(b"0", 2), (b"1", 2)]


def test_a_lease_may_be_extended_beyond_its_first_length(place: Place) -> None:
    broker = place.broker(lease=0.9)
    broker.publish_many(messages(b"x"))
    first, second = place.consumer(broker), place.consumer(broker)
    got = take(first, 1)
    first.extend_many(got, 1.8)
    begun = time.monotonic()
    again = take(second, 1, within=1.8 + place.late)
    assert time.monotonic() - begun > 1.7
    assert [delivery.deliveries for delivery in again] == [2]
    first.ack_many(got)
    assert waits(broker, "q", 0)
    second.release_many(again)
    assert bodies(take(second, 1)) == [b"x"], "the late ack did nothing"


def test_an_extension_may_shorten(place: Place) -> None:
    broker = place.broker(lease=30)
    broker.publish_many(messages(b"x"))
    first, second = place.consumer(broker), place.consumer(broker)
    first.extend_many(take(first, 1), 0.2)
    begun = time.monotonic()
    assert bodies(take(second, 1)) == [b"x"]
    assert 0.1 < time.monotonic() - begun < place.late


def _overtaken(place: Place) -> tuple[Consumer, Consumer, list[Delivery], list[Delivery]]:
    """Two consumers; the first one's leases are over, and the second has the messages."""
    broker = place.broker(lease=place.lease)
    broker.publish_many(numbered(2))
    first, second = place.consumer(broker), place.consumer(broker)
    late = take(first, 2)
    got = take(second, 2, within=place.lease + place.late)
    assert len(got) == 2
    second.extend_many(got, 30)
    return first, second, late, got


def test_late_settling_does_nothing(place: Place) -> None:
    first, second, late, got = _overtaken(place)
    broker = place.broker()
    first.ack_many(late[:1])
    first.release_many(late)
    first.reject_many(late, "late")
    first.extend_many(late, 0.0)
    assert waits(broker, "q", 0)
    assert list(broker.dead_letters("q")) == []
    third = place.consumer(broker)
    assert nothing(third)
    second.release_many(got)
    again = take(third, 2)
    assert sorted((d.body, d.deliveries) for d in again) == [(b"0", 2), (b"1", 2)], "as before its release"


def test_a_late_ack_of_its_own_earlier_delivery_does_nothing(place: Place) -> None:
    broker = place.broker(lease=place.lease)
    broker.publish_many(messages(b"x"))
    consumer = place.consumer(broker)
    [early] = take(consumer, 1)
    [late] = take(consumer, 1, within=place.lease + place.late)
    consumer.ack_many([early])
    assert late.deliveries == 2
    assert bodies(take(consumer, 1, within=place.lease + place.late)) == [b"x"]


def test_many_consumers_share_without_doubles(place: Place) -> None:
    broker = place.broker()
    total, seen, lock = 400, Counter[bytes](), threading.Lock()
    done = threading.Event()

    def work() -> None:
        consumer = broker.consume(["q"], prefetch=7)
        while not done.is_set():
            got = consumer.receive_many(5, 0.1)
            with lock:
                seen.update(delivery.body for delivery in got)
                if len(seen) == total:
                    done.set()
            consumer.ack_many(got)
        consumer.close()

    workers = [Later(work) for _ in range(5)]
    for start in range(0, total, 40):
        broker.publish_many(messages(*(b"%d" % number for number in range(start, start + 40))))
    assert done.wait(30)
    for worker in workers:
        worker.result()
    assert set(seen.values()) == {1}
    assert len(seen) == total
    assert waits(broker, "q", 0)


def test_prefetch_bounds_what_is_unsettled(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(10))
    consumer, other = place.consumer(broker, prefetch=3), place.consumer(broker)
    got = take(consumer, 3)
    begun = time.monotonic()
    assert consumer.receive_many(10, 0.2) == []
    assert time.monotonic() - begun > 0.15
    assert waits(broker, "q", 7)
    consumer.ack_many(got[:1])
    more = take(consumer, 1)
    assert len(more) == 1
    waiting = Later(lambda: take(consumer, 2))
    time.sleep(0.1)
    consumer.release_many(got[1:2])
    consumer.reject_many(more, "no")
    assert len(waiting.result()) == 2
    assert len(take(other, 5)) == 5
    assert nothing(other, 0)


def test_close_releases_the_unsettled_at_once(place: Place) -> None:
    broker = place.broker(lease=30)
    broker.publish_many(numbered(4))
    first = place.consumer(broker)
    second = place.consumer(broker)
    got = take(first, 4)
    first.ack_many(got[:1])
    begun = time.monotonic()
    first.close()
    first.close()
    again = take(second, 3)
    assert time.monotonic() - begun < place.late
    assert sorted((d.body, d.deliveries) for d in again) == [(b"1", 1), (b"2", 1), (b"3", 1)]


def test_close_ends_a_receive_that_waits(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker)
    waiting = Later(lambda: consumer.receive_many(1, 30.0))
    time.sleep(0.2)
    consumer.close()
    assert waiting.result(place.late) == []
    broker.publish_many(messages(b"x"))
    assert bodies(take(place.consumer(broker), 1)) == [b"x"]


def test_wake_ends_a_receive_that_waits(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker)
    for _ in range(3):
        waiting = Later(lambda: consumer.receive_many(1, 30.0))
        time.sleep(0.1)
        consumer.wake()
        assert waiting.result(place.late) == []
    broker.publish_many(numbered(1))
    assert bodies(take(consumer, 1)) == [b"0"]


def test_wake_before_receive_loses_nothing(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker)
    consumer.wake()
    consumer.wake()
    broker.publish_many(numbered(20))
    assert len(take(consumer, 20, limit=3)) == 20


def test_wake_ends_a_wait_for_room(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(2))
    consumer = place.consumer(broker, prefetch=1)
    assert len(take(consumer, 1)) == 1
    waiting = Later(lambda: consumer.receive_many(1, 30.0))
    time.sleep(0.1)
    consumer.wake()
    assert waiting.result(place.late) == []


def test_settling_from_another_thread_while_one_receives(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker, prefetch=20)
    taken: list[Delivery] = []
    arrived = threading.Semaphore(0)

    def settle() -> None:
        for number in range(300):
            assert arrived.acquire(timeout=10)
            consumer.ack_many([taken[number]])

    settler = Later(settle)
    broker.publish_many(numbered(300))
    while len(taken) < 300:
        got = consumer.receive_many(4, 5.0)
        assert got
        taken += got
        arrived.release(len(got))
    settler.result()
    assert Counter(bodies(taken)) == Counter(b"%d" % number for number in range(300))
    consumer.close()
    assert waits(broker, "q", 0)


def test_a_killed_process_gives_back_what_it_held(place: Place) -> None:
    broker = place.broker(lease=place.lease)
    broker.publish_many(numbered(3))
    process = place.process(CONSUMER, with_options(place.url, lease=place.lease), "3")
    assert process.stdout is not None
    assert process.stdout.readline() == "3\n"
    process.kill()
    process.wait()
    consumer = place.consumer(broker)
    again = take(consumer, 3, within=place.death)
    assert sorted((d.body, d.deliveries) for d in again) == [(b"%d" % number, 2) for number in range(3)]
    consumer.ack_many(again)
    assert nothing(consumer, place.lease + 0.2)


def test_other_queues_from_now_on(place: Place) -> None:
    broker = place.broker()
    consumer = place.consumer(broker, "a")
    broker.publish_many([*messages(b"1", queue="a"), *messages(b"2", queue="b")])
    held = take(consumer, 1)
    assert bodies(held) == [b"1"]
    consumer.take_from(["b"])
    assert [(d.queue, d.body) for d in take(consumer, 1)] == [("b", b"2")]
    broker.publish_many([*messages(b"3", queue="a"), *messages(b"4", queue="b")])
    assert [(d.queue, d.body) for d in take(consumer, 1)] == [("b", b"4")]
    assert nothing(consumer)
    consumer.ack_many(held)
    consumer.take_from(["b", "a"])
    assert [(d.queue, d.body) for d in take(consumer, 1)] == [("a", b"3")]


def test_from_no_queue_and_again(place: Place) -> None:
    """A consumer that waits is paused and resumed by another thread."""
    broker = place.broker()
    consumer = place.consumer(broker, "q")
    assert nothing(consumer, 0)
    waiting = Later(lambda: take(consumer, 1, within=30))
    consumer.take_from([])
    broker.publish_many(messages(b"x"))
    other = place.consumer(place.broker(), "q")
    assert bodies(take(other, 1)) == [b"x"], "nobody else holds it"
    other.close()
    consumer.take_from(["q"])
    assert bodies(waiting.result(20)) == [b"x"]
