"""The in-process broker and backend: what the conformance suite, which looks at one broker at a time, does not see."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from qnb.backends.memory import MemoryBackend
from qnb.brokers.base import QueueSpec, Turn
from qnb.brokers.memory.broker import MemoryBroker
from qnb.errors import BackendUnavailable, BrokerUnavailable
from qnb.message import Envelope, Note, Stored
from qnb.session.session import Session


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[MemoryBroker]:
    made = MemoryBroker(f"memory://{request.node.name}")
    yield made
    made.close()


def test_same_name_shares_and_the_last_to_close_drops_all() -> None:
    one, two, other = MemoryBroker("memory://a"), MemoryBroker("memory://a"), MemoryBroker("memory://b")
    one.publish_many([Envelope("q", b"x")])
    assert (two.depth("q"), other.depth("q")) == (1, 0)
    one.close()
    assert two.depth("q") == 1
    two.close()
    other.close()
    again = MemoryBroker("memory://a")
    assert again.depth("q") == 0
    again.close()


def test_closed_ones_say_so() -> None:
    broker, backend = MemoryBroker("memory://closed"), MemoryBackend("memory://closed")
    broker.close()
    broker.close()
    backend.close()
    backend.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        broker.publish_many([Envelope("q", b"x")])
    with pytest.raises(BackendUnavailable, match="closed"):
        backend.store_many([])


def test_a_waiting_consumer_gets_what_an_expired_lease_sets_free(broker: MemoryBroker) -> None:
    broker.declare(QueueSpec("q", lease=0.2))
    broker.publish_many([Envelope("q", b"x")])
    first, second = broker.consume(["q"], prefetch=1), broker.consume(["q"], prefetch=1)
    assert first.receive_many(1, 0)
    started = time.monotonic()
    late = second.receive_many(1, 5)
    assert [delivery.deliveries for delivery in late] == [2]
    assert 0.1 < time.monotonic() - started < 4


def test_a_full_consumer_goes_on_when_another_thread_settles(broker: MemoryBroker) -> None:
    broker.publish_many([Envelope("q", b"1"), Envelope("q", b"2")])
    consumer = broker.consume(["q"], prefetch=1)
    held = consumer.receive_many(10, 0)
    assert consumer.receive_many(10, 0) == []
    threading.Timer(0.1, consumer.ack_many, [held]).start()
    assert [delivery.body for delivery in consumer.receive_many(10, 5)] == [b"2"]


def test_a_removed_queue_is_made_anew_for_who_waits(broker: MemoryBroker) -> None:
    consumer = broker.consume(["q"], prefetch=1)
    broker.publish_many([Envelope("q", b"old")])
    held = consumer.receive_many(1, 0)
    broker.remove("q")
    consumer.ack_many(held)
    threading.Timer(0.1, broker.publish_many, [[Envelope("q", b"new")]]).start()
    assert [delivery.body for delivery in consumer.receive_many(1, 5)] == [b"new"]


def test_partner_settles_in_one_call_and_names_the_refused(broker: MemoryBroker) -> None:
    backend = MemoryBackend(broker.url)
    settle = broker.partner(backend)
    assert settle is not None
    inbox = broker.bus().join("me")
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=1)
    record = Stored("r", 0, 1, b"first")
    turn = Turn([Envelope("next", b"y")], [record], [Note("me", "outcomes", b"n")], list(consumer.receive_many(1, 0)))
    assert settle(consumer, turn) == []
    assert settle(consumer, Turn(store=[Stored("r", 0, 1, b"second")])) == [Stored("r", 0, 1, b"second")]
    assert list(backend.fetch_many("r")) == [record]
    assert [note.body for note in inbox.receive_many(9, 0)] == [b"n"]
    assert (broker.depth("q"), broker.depth("next")) == (0, 1)
    backend.close()


def test_no_partner_for_another_name(broker: MemoryBroker) -> None:
    backend = MemoryBackend("memory://somewhere-else")
    assert broker.partner(backend) is None
    backend.close()


def test_many_threads_take_each_message_once(broker: MemoryBroker) -> None:
    seen: Counter[bytes] = Counter()
    lock = threading.Lock()

    def produce(number: int) -> None:
        for i in range(0, 1000, 10):
            broker.publish_many([Envelope("q", b"%d-%d" % (number, j), priority=j % 3) for j in range(i, i + 10)])

    def consume() -> None:
        consumer = broker.consume(["q"], prefetch=20)
        while taken := consumer.receive_many(7, 1.0):
            with lock:
                seen.update(delivery.body for delivery in taken)
            consumer.ack_many(taken)
        consumer.close()

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(3)]
    threads += [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 3000
    assert set(seen.values()) == {1}


def test_wake_ends_a_wait(broker: MemoryBroker) -> None:
    consumer, inbox = broker.consume(["q"], prefetch=1), broker.bus().join("me")
    for waiter in (consumer, inbox):
        started = time.monotonic()
        threading.Timer(0.1, waiter.wake).start()
        assert waiter.receive_many(1, 5) == []
        assert time.monotonic() - started < 4


def test_fetch_finds_wide_records_by_their_middle() -> None:
    backend = MemoryBackend("memory://fetch")
    backend.store_many([Stored("r", 0, 100, b"wide"), Stored("r", 50, 1, b"inner"), Stored("r", 200, 5, b"later")])
    assert [record.data for record in backend.fetch_many("r", [(60, 1)])] == [b"wide"]
    assert [record.data for record in backend.fetch_many("r", [(204, 9), (50, 1)])] == [b"wide", b"inner", b"later"]
    assert backend.fetch_many("r", [(100, 100)]) == []
    backend.close()


def test_what_has_expired_is_gone() -> None:
    backend = MemoryBackend("memory://expiry?expires=0.05")
    backend.store_many([Stored("r", 0, 1, b"x")])
    backend.put_blob("b", b"x")
    backend.revoke_many([("r", 0, 1)])
    time.sleep(0.1)
    assert backend.fetch_many("r") == []
    assert backend.get_blob("b") is None
    assert backend.revoked() == []
    backend.close()


def test_a_session_that_cannot_join_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[type] = []

    def away(self: object) -> object:
        raise BrokerUnavailable("away, as this test wants it")

    monkeypatch.setattr(MemoryBroker, "bus", away)
    for kind in (MemoryBroker, MemoryBackend):
        monkeypatch.setattr(kind, "close", lambda self: closed.append(type(self)))
    with pytest.raises(BrokerUnavailable, match="as this test wants it"):
        Session("memory:")
    assert closed == [MemoryBackend, MemoryBroker]


def test_a_note_that_is_posted_while_others_are_taken_comes_next(broker: MemoryBroker) -> None:
    inbox = broker.bus().join("me")

    class Busy(list[Note]):
        """Somebody posts while its first notes are looked at."""

        def __getitem__(self, where: Any) -> Any:
            found = super().__getitem__(where)
            broker.bus().post_many([Note("me", "event", b"2")])
            return found

    inbox._mailbox.notes = Busy()
    broker.bus().post_many([Note("me", "event", b"1")])
    assert [note.body for note in inbox.receive_many(10, 0.0)] == [b"1"]
    inbox._mailbox.notes = list(inbox._mailbox.notes)
    assert [note.body for note in inbox.receive_many(10, 0.0)] == [b"2"]
