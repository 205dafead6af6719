"""What is particular to a Redis server: its settings, its memory, and that it may lose it."""

from __future__ import annotations

import time
import warnings

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.redis import server as redis_server
from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.server import RedisSettingsWarning
from qnb.errors import PayloadTooLarge, StorageFull
from qnb.message import Envelope, Note, Stored
from tests.services import Services, with_options
from tests.unit.redis.help import consume, keys


def warned(url: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RedisBroker(url).close()
        RedisBackend(url).close()
    return [str(one.message) for one in caught if one.category is RedisSettingsWarning]


def test_a_server_that_evicts_is_told_of_once(services: Services) -> None:
    server = services.redis(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    [message] = warned(server.url)
    assert "allkeys-lru" in message
    assert "noeviction" in message
    assert warned(server.url) == []


def test_a_server_that_forgets_is_told_of_once(services: Services) -> None:
    server = services.redis(save='""')
    [message] = warned(server.url)
    assert "appendonly yes" in message
    assert warned(server.url) == []
    assert warned(services.redis(save='""', appendonly=True).url) == []


def test_a_server_whose_settings_are_hidden_is_not_suspected(services: Services) -> None:
    server = services.redis(save='""', rename_command='CONFIG ""')
    assert warned(server.url) == []


def test_warnings_are_per_server(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_warned", set())
    assert len(warned(services.redis(save='""', maxmemory="1gb", maxmemory_policy="volatile-ttl").url)) == 2


# ------------------------------------------------------------ memory and size


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_out_of_memory_names_the_remedy_and_drains(services: Services, kind: str) -> None:
    server = services.private(kind, maxmemory="4mb", maxmemory_policy="noeviction")
    broker, backend = RedisBroker(server.url), RedisBackend(server.url)
    body = bytes(100_000)
    sent = 0

    def fill() -> None:
        nonlocal sent
        while sent < 100:
            broker.publish_many([Envelope("q", body)])
            sent += 1

    with pytest.raises(StorageFull, match="maxmemory"):
        fill()
    with pytest.raises(StorageFull, match="maxmemory"):
        backend.store_many([Stored("run", 0, 1, body)])
    broker._client.one("CONFIG", "SET", "maxmemory", 1)  # not even for the small things of a new consumer
    consumer = consume(broker)
    drained = 0
    while deliveries := consumer.receive_many(10, 0.2):
        consumer.ack_many(deliveries)
        drained += len(deliveries)
    assert drained == sent
    broker._client.one("CONFIG", "SET", "maxmemory", 4_000_000)
    broker.publish_many([Envelope("q", body)])
    consumer.close()
    broker.close()
    backend.close()


def test_a_release_that_finds_no_memory_loses_nothing(services: Services) -> None:
    server = services.redis(maxmemory="0", maxmemory_policy="noeviction")
    broker = RedisBroker(with_options(server.url, lease=0.5))
    broker.publish_many([Envelope("q", bytes(100_000))])
    consumer = consume(broker)
    held = consumer.receive_many(1, 5.0)
    broker._client.one("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(StorageFull):
        consumer.release_many(held)
    broker._client.one("CONFIG", "SET", "maxmemory", 0)
    assert len(consumer.receive_many(1, 5.0)) == 1
    consumer.close()
    broker.close()


def test_more_than_redis_takes_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnb.brokers.redis.settle.LARGEST_VALUE", 1000)
    backend = RedisBackend(url)
    for store in (
        lambda: backend.store_many([Stored("run", 0, 1, bytes(1001))]),
        lambda: backend.put_blob("key", bytes(1001)),
    ):
        with pytest.raises(PayloadTooLarge, match=r"1,001.*1,000"):
            store()
    backend.put_blob("key", bytes(1000))
    backend.close()


def test_dead_letters_are_capped(url: str) -> None:
    broker = RedisBroker(with_options(url, dead_letters=50))
    consumer = consume(broker, prefetch=1000)
    for _ in range(5):
        broker.publish_many([Envelope("q", b"%d" % number) for number in range(100)])
        consumer.reject_many(consumer.receive_many(100, 5.0), "no")
    assert 50 <= len(broker.dead_letters("q", limit=1000)) <= 250, "Redis trims by whole nodes of 100"
    consumer.close()
    broker.close()


# ------------------------------------------------------------ a server that lost its memory


def test_flushed_under_way(broker: RedisBroker) -> None:
    consumer, inbox = consume(broker), broker.bus().join("me")
    broker.publish_many([Envelope("q", b"gone")])
    held = consumer.receive_many(1, 5.0)
    for key in keys(broker):
        broker._client.one("DEL", broker._base + key)
    broker._client.one("SCRIPT", "FLUSH")
    consumer.ack_many(held)
    consumer.release_many(held)
    broker.publish_many([Envelope("q", b"1"), Envelope("q", b"2", priority=3), Envelope("q", b"3", delay=0.05)])
    seen: set[bytes] = set()
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        seen |= {delivery.body for delivery in consumer.receive_many(10, 1.0)}
    assert seen == {b"1", b"2", b"3"}
    consumer.close()
    inbox.close()


def test_restarted_without_its_data(services: Services) -> None:
    server = services.redis()
    broker = RedisBroker(server.url)
    consumer, inbox = consume(broker), broker.bus().join("me")
    inbox.beat()
    broker.publish_many([Envelope("q", b"lost")])
    assert consumer.receive_many(1, 5.0)
    server.kill()
    server.start()
    broker.publish_many([Envelope("q", b"new")])
    assert [delivery.body for delivery in consumer.receive_many(1, 10.0)] == [b"new"]
    inbox.receive_many(1, 0.1)  # finds its link broken, and then its mailbox gone
    inbox.receive_many(1, 0.1)
    inbox.beat()
    broker.bus().post_many([Note("me", "event", b"hello")])
    assert inbox.receive_many(1, 10.0) == [Note("me", "event", b"hello")]
    assert [presence.peer for presence in broker.bus().peers()] == ["me"]
    consumer.close()
    inbox.close()
    broker.close()
