"""Settling a turn in one round trip, in both of its ways."""

from __future__ import annotations

import threading
import time

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.base import Turn
from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.consumer import RedisConsumer
from qnb.errors import StorageFull
from qnb.message import Envelope, Note, Stored
from tests.services import Services
from tests.unit.redis.fake import FakeRedis, Replies, information
from tests.unit.redis.help import consume


@pytest.fixture(params=["plain", "script"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which a turn is settled."""
    monkeypatch.setattr("qnb.brokers.redis.settle._PLAIN_PARTS", 1000 if request.param == "plain" else 0)
    return str(request.param)


def test_a_turn_is_one_round_trip(broker: RedisBroker, url: str, sends: list[int], way: str) -> None:
    backend = RedisBackend(url)
    settle = broker.partner(backend)
    assert settle is not None
    consumer, inbox = consume(broker), broker.bus().join("me")
    settle(consumer, Turn(store=[Stored("another", 0, 1, b"x")]))  # loads the script
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(20)])
    deliveries = consumer.receive_many(20, 5.0)
    stored = [Stored("run", number, 1 + number, b"%d" % number) for number in range(20)]
    notes = [Note("me", "outcomes", one.data) for one in stored]
    sends.clear()
    assert list(settle(consumer, Turn(store=stored, post=notes, ack=list(deliveries)))) == []
    assert len(sends) == 1
    assert (sends[0] == 1) == (way == "script")
    assert inbox.receive_many(100, 5.0) == notes
    assert list(backend.fetch_many("run")) == stored
    assert list(backend.fetch_many("run", [(38, 1)])) == stored[19:], "the bits of its length are there"
    assert broker._client.one("XLEN", f"{broker._base}q0:q") == 0
    assert broker._client.one("XPENDING", f"{broker._base}q0:q", "qnb")[0] == 0
    assert broker._client.one("PTTL", f"{broker._base}out:run") > 0
    assert broker._client.one("PTTL", f"{broker._base}starts:run") > 0
    inbox.close()
    consumer.close()
    backend.close()


def test_a_refused_turn_changes_nothing(broker: RedisBroker, url: str, way: str) -> None:
    """A server that refuses one part (here: a mailbox that is no mailbox) has not acked."""
    backend = RedisBackend(url)
    settle = broker.partner(backend)
    assert settle is not None
    consumer = consume(broker)
    broker.publish_many([Envelope("q", b"x")])
    held = list(consumer.receive_many(1, 5.0))
    broker._client.one("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(StorageFull):
            settle(consumer, Turn(store=[Stored("run", 0, 1, b"x")], post=[Note("me", "event", b"x")], ack=held))
    finally:
        broker._client.one("CONFIG", "SET", "maxmemory", 0)
    assert list(backend.fetch_many("run")) == []
    consumer.release_many(held)
    assert len(consumer.receive_many(1, 5.0)) == 1
    consumer.close()
    backend.close()


def test_the_first_note_has_what_is_stored(broker: RedisBroker, url: str, way: str) -> None:
    """Workers settle the same calls at once: a reader that takes the first it sees agrees with the backend."""
    backend = RedisBackend(url)
    inbox = broker.bus().join("me")

    def work(who: int) -> None:
        own, results = RedisBroker(url), RedisBackend(url)
        settle, consumer = own.partner(results), consume(own)
        assert settle is not None
        for call in range(100):
            data = b"%d:%d" % (call, who)
            settle(consumer, Turn(store=[Stored("run", call, 1, data)], post=[Note("me", "outcomes", data)]))
        consumer.close()
        own.close()
        results.close()

    workers = [threading.Thread(target=work, args=(who,)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seen: dict[int, bytes] = {}
    while notes := inbox.receive_many(100, 0.2):
        for note in notes:
            seen.setdefault(int(note.body.split(b":")[0]), note.body)
    assert seen == {one.first: one.data for one in backend.fetch_many("run")}
    assert len(seen) == 100
    inbox.close()
    backend.close()


def test_an_ack_looks_when_the_lease_may_be_over(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = consume(broker)
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(2)])
    held = consumer.receive_many(2, 5.0)
    assert consumer.surely_holds(held)
    now = time.monotonic()
    monkeypatch.setattr("qnb.brokers.redis.consumer.time.monotonic", lambda: now + consumer.lease * 0.6)
    assert not consumer.surely_holds(held)
    consumer.extend_many(held[:1], consumer.lease)
    assert consumer.surely_holds(held[:1])
    assert not consumer.surely_holds(held)
    consumer.extend_many(held[:1], consumer.lease * 0.3)
    assert not consumer.surely_holds(held[:1])
    monkeypatch.undo()
    consumer.ack_many(held)
    assert not consumer.surely_holds(held)
    consumer.close()


def test_an_outcome_that_is_stored_and_posted_travels_once(broker: RedisBroker, url: str) -> None:
    from qnb.brokers.redis.settle import settle_command

    backend = RedisBackend(url)
    data = bytes(100_000)
    command = settle_command(broker._base, backend.home, [Stored("run", 0, 1, data)], [Note("me", "outcomes", data)])
    assert sum(len(part) for part in command if isinstance(part, bytes)) < 101_000
    backend.close()


def test_a_turn_whose_reply_was_lost_may_be_sent_again(broker: RedisBroker, url: str, way: str) -> None:
    """Its records are its own: the second time they are not refused."""
    backend = RedisBackend(url)
    settle = broker.partner(backend)
    assert settle is not None
    consumer, inbox = consume(broker), broker.bus().join("me")
    turn = Turn(store=[Stored("run", 0, 2, b"x")], post=[Note("me", "outcomes", b"x")])
    assert list(settle(consumer, turn)) == list(settle(consumer, turn)) == []
    refused = Turn(store=[Stored("run", 0, 1, b"y")], post=[Note("me", "outcomes", b"y"), Note("me", "event", b"e")])
    refused.post[0] = Note("me", "outcomes", refused.store[0].data)
    assert list(settle(consumer, refused)) == refused.store
    posted = [note.body for note in inbox.receive_many(10, 5.0)]
    assert posted == ([b"x", b"x", b"y", b"e"] if way == "plain" else [b"x", b"x", b"e"]), "a refused one comes later"
    inbox.close()
    consumer.close()
    backend.close()


def test_one_server_under_two_names_is_a_partner(services: Services) -> None:
    server = services.shared("redis")
    broker = RedisBroker(f"redis://127.0.0.1:{server.port}/0?prefix={services.word()}")
    for url, partner in (
        (f"redis://localhost:{server.port}/0?prefix=other", True),
        (f"redis+socket://{server.socket_path}", True),
        (f"redis://127.0.0.1:{server.port}/1", False),
        (services.redis().url, False),
    ):
        backend = RedisBackend(url)
        assert (broker.partner(backend) is not None) is partner
        backend.close()
    broker.close()


def test_a_transaction_that_was_cut_is_sent_whole_again() -> None:
    queued = b"+QUEUED\r\n"
    names = [b"HSETNX", b"SETBIT", b"PEXPIRE", b"XADD"]
    done = b"*6\r\n" + b":1\r\n" * 6
    replies: Replies = dict.fromkeys(names, queued) | {b"EXEC": [b"", b"-EXECABORT Transaction discarded\r\n", done]}
    replies[b"XADD"] = [queued, b"-LOADING Redis is loading the dataset in memory\r\n", queued]
    fake = FakeRedis(information() | replies | {b"XGROUP": b"+OK\r\n", b"HGET": b"$-1\r\n", b"HSETNX": queued})
    broker, backend = RedisBroker(fake.url), RedisBackend(fake.url)
    settle = broker.partner(backend)
    assert settle is not None
    consumer = RedisConsumer(broker._client, ["q"], 10, broker._options)
    fake.seen.clear()
    assert list(settle(consumer, Turn(store=[Stored("run", 0, 1, b"x")], post=[Note("me", "event", b"x")]))) == []
    sent = [name for name in fake.seen if name not in (b"CLIENT", b"SELECT")]
    turn = [b"MULTI", b"HSETNX", b"SETBIT", b"SETBIT", b"PEXPIRE", b"PEXPIRE", b"XADD", b"EXEC"]
    assert sent == turn * 3, "cut once, refused once, done"
    broker.close()
    backend.close()
    fake.close()
