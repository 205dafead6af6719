"""What was confirmed outlives the server: killed with -9 and started again on the same data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from qnb.brokers.base import Turn
from qnb.message import Envelope, Note, Stored
from tests.conformance.help import Later, Place, bodies, messages, numbered, read, take, waits
from tests.services import Case, Services

Restart = Callable[[], None]


@pytest.fixture
def durable(case: Case, services: Services) -> Iterator[tuple[Place, Restart]]:
    if case.restart is None:
        pytest.skip(f"{case.label}: keeps nothing beyond its process, and says so")
    url, restart = case.restart(services)
    place = Place(url, case)
    yield place, restart
    place.close()


def test_everything_confirmed_is_there_again(durable: tuple[Place, Restart]) -> None:
    place, restart = durable
    lease = max(1.0, place.lease)
    broker, backend = place.broker(lease=lease), place.backend()
    broker.publish_many([*numbered(3), Envelope("q", b"later", delay=0.5), Envelope("q", b"urgent", priority=9)])
    consumer = place.consumer(broker)
    got = take(consumer, 2, limit=2)
    consumer.reject_many(got[:1], "why")
    backend.store_many([Stored("run", 0, 2, b"x")])
    broker.depth("q")  # before it counts, what was rejected is settled
    time.sleep(place.case.writes)
    restart()
    again = place.consumer(place.broker(lease=lease))
    held: dict[bytes, int] = {}
    end = time.monotonic() + 30
    while len(held) < 4 and time.monotonic() < end:
        got = again.receive_many(4, 1.0)
        held |= {delivery.body: delivery.deliveries for delivery in got}
        again.ack_many(got)  # some may come much later than others, and these are not to come again meanwhile
    assert held == {b"0": 2, b"1": 1, b"2": 1, b"later": 1}
    assert [letter.body for letter in broker.dead_letters("q")] == [b"urgent"]
    if backend.durable:
        assert list(backend.fetch_many("run")) == [Stored("run", 0, 2, b"x")]


def test_the_same_connections_go_on(durable: tuple[Place, Restart]) -> None:
    """A publisher, a waiting consumer, a settler and a reader of the bus ride out the restart by themselves."""
    place, restart = durable
    broker = place.broker(lease=30)  # some servers take seconds to come back
    consumer, inbox = place.consumer(broker), place.inbox(broker, "me")
    broker.publish_many(messages(b"before"))
    held = take(consumer, 1)
    waiting = Later(lambda: take(consumer, 1, within=60))
    reading = Later(lambda: read(inbox, 1, within=60))
    time.sleep(0.2)
    restart()
    broker.publish_many(messages(b"after"))
    assert bodies(waiting.result()) == [b"after"]
    deadline = time.monotonic() + 50
    settle = broker.partner(place.backend())
    turn = Turn(store=[Stored("run", 0, 1, b"x")], post=[Note("me", "event", b"hello")], ack=held)
    while not reading.seconds and time.monotonic() < deadline:
        if settle is not None:
            settle(consumer, turn)
        else:
            broker.bus().post_many(turn.post)
            consumer.ack_many(turn.ack)
        time.sleep(0.1)
    assert reading.result()[0] == Note("me", "event", b"hello")
    consumer.close()
    assert waits(broker, "q", 1), "acked in the meantime; the other one was released"


def test_publishing_while_the_server_is_away(durable: tuple[Place, Restart]) -> None:
    """Every confirmed message is there: none lost, however the kill fell."""
    place, restart = durable
    broker = place.broker()

    def publish() -> int:
        for number in range(200):
            broker.publish_many(messages(b"%d" % number))
            time.sleep(0.002)
        return 200

    publishing = Later(publish)
    time.sleep(0.15)
    restart()
    assert publishing.result(60) == 200
    consumer = place.consumer(broker)
    wanted, seen = {b"%d" % number for number in range(200)}, set[bytes]()
    end = time.monotonic() + 30  # some servers are up before all of their queues are
    while seen < wanted and time.monotonic() < end:
        seen |= set(bodies(consumer.receive_many(100, 1.0)))
    assert seen == wanted
