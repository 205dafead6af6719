"""Settling a turn at once, where broker and backend are one server: the same effects as one by one, in order."""

from __future__ import annotations

from functools import partial

import pytest

from qnb.backends.base import Backend
from qnb.brokers.base import Broker, Settle, Turn
from qnb.message import Envelope, Note, Stored
from tests.conformance.help import Later, Place, bodies, messages, nothing, numbered, read, take


class Pair:
    """A broker, the backend beside it, and what settles for both."""

    def __init__(self, place: Place, **options: object) -> None:
        self.broker: Broker = place.broker(**options)
        self.backend: Backend = place.backend()
        settle = self.broker.partner(self.backend)
        if self.backend.scheme == "rpc":
            assert settle is None
            pytest.skip(f"{place.case.label}: no backend lives on the same server")
        assert settle is not None
        self.settle: Settle = settle


@pytest.fixture
def pair(place: Place) -> Pair:
    return Pair(place)


def test_a_backend_elsewhere_is_no_partner(place: Place) -> None:
    from qnb.backends.memory import MemoryBackend

    elsewhere = MemoryBackend("memory://elsewhere")
    assert place.broker().partner(elsewhere) is None
    elsewhere.close()


def test_a_whole_turn(pair: Pair, place: Place) -> None:
    pair.broker.publish_many(numbered(3))
    consumer, inbox = place.consumer(pair.broker), place.inbox(pair.broker, "session")
    got = take(consumer, 3)
    stored = [Stored("run", 0, 2, b"both"), Stored("run", 2, 1, b"third")]
    notes = [Note("session", "outcomes", one.data) for one in stored] + [Note("session", "event", b"e")]
    again = [Envelope("q", b"again"), Envelope("q", b"later", delay=0.1), Envelope("q", b"urgent", priority=9)]
    assert list(pair.settle(consumer, Turn(publish=again, store=stored, post=notes, ack=got[:2]))) == []
    assert list(pair.backend.fetch_many("run")) == stored
    assert read(inbox, 3) == notes
    consumer.release_many(got[2:])
    assert sorted(bodies(take(consumer, 4))) == [b"2", b"again", b"later", b"urgent"]
    assert nothing(consumer)


def test_each_part_alone(pair: Pair, place: Place) -> None:
    pair.broker.publish_many(numbered(1))
    consumer, inbox = place.consumer(pair.broker, prefetch=1), place.inbox(pair.broker, "session")
    assert list(pair.settle(consumer, Turn())) == []
    got = take(consumer, 1)
    assert list(pair.settle(consumer, Turn(store=[Stored("run", 0, 1, b"x")]))) == []
    assert list(pair.settle(consumer, Turn(post=[Note("session", "event", b"x")]))) == []
    assert list(pair.settle(consumer, Turn(publish=messages(b"next")))) == []
    assert list(pair.settle(consumer, Turn(ack=got))) == []
    assert len(pair.backend.fetch_many("run")) == len(read(inbox, 1)) == 1
    assert bodies(take(consumer, 1)) == [b"next"], "the ack made room"


def test_refused_are_exactly_those_that_lost(pair: Pair, place: Place) -> None:
    consumer = place.consumer(pair.broker)
    pair.backend.store_many([Stored("run", 3, 1, b"first")])
    batch = [Stored("run", number, 1, b"%d" % number) for number in range(5)]
    assert list(pair.settle(consumer, Turn(store=batch))) == [batch[3]]
    other = [Stored("run", 4, 1, b"other"), Stored("run", 5, 1, b"5"), Stored("elsewhere", 3, 1, b"3")]
    assert list(pair.settle(consumer, Turn(store=other))) == other[:1]
    assert [one.data for one in pair.backend.fetch_many("run")] == [b"0", b"1", b"2", b"first", b"4", b"5"]


def test_the_first_note_of_a_call_has_what_is_stored(pair: Pair, place: Place) -> None:
    """Several workers settle the same calls; a reader that takes the first outcome it sees agrees with the backend."""
    inbox = place.inbox(pair.broker, "session")
    calls = 150

    def work(who: int) -> None:
        mine = Pair(place)
        consumer = place.consumer(mine.broker)
        for call in range(calls):
            data = b"%d:%d" % (call, who)
            mine.settle(consumer, Turn(store=[Stored("run", call, 1, data)], post=[Note("session", "outcomes", data)]))

    workers = [Later(partial(work, who)) for who in range(3)]
    for worker in workers:
        worker.result()
    seen: dict[int, bytes] = {}
    while notes := inbox.receive_many(100, 0.2):
        for note in notes:
            seen.setdefault(int(note.body.split(b":")[0]), note.body)
    stored = {one.first: one.data for one in pair.backend.fetch_many("run")}
    assert len(stored) == calls
    assert seen == stored


def test_a_late_ack_in_a_turn_does_nothing(place: Place) -> None:
    pair = Pair(place, lease=place.lease)
    pair.broker.publish_many(messages(b"x"))
    first, second = place.consumer(pair.broker), place.consumer(pair.broker)
    late = take(first, 1)
    got = take(second, 1, within=place.lease + place.late)
    second.extend_many(got, 30)
    assert list(pair.settle(first, Turn(store=[Stored("run", 0, 1, b"x")], ack=late))) == []
    second.release_many(got)
    assert bodies(take(first, 1)) == [b"x"]


def test_a_large_outcome(pair: Pair, place: Place) -> None:
    consumer, inbox = place.consumer(pair.broker), place.inbox(pair.broker, "session")
    data = bytes(range(256)) * 4096
    note = Note("session", "outcomes", data)
    assert list(pair.settle(consumer, Turn(store=[Stored("run", 0, 1, data)], post=[note]))) == []
    assert read(inbox, 1) == [note]
    assert [one.data for one in pair.backend.fetch_many("run", [(0, 1)])] == [data]
