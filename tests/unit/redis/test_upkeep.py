"""What the Redis broker leaves on the server, and what it asks of it."""

from __future__ import annotations

import threading
import time

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.base import Turn
from qnb.brokers.redis.broker import RedisBroker
from qnb.message import Envelope, Note, Stored
from tests.services import Services, with_options
from tests.unit.redis.help import consume, keys


def test_every_key_has_the_one_tag(services: Services) -> None:
    prefix = services.word()
    own = with_options(services.redis().url, prefix=prefix)
    broker, backend = RedisBroker(own), RedisBackend(own)
    consumer, inbox = consume(broker), broker.bus().join("me")
    inbox.beat(b"x")
    broker.publish_many([Envelope("q", b"1"), Envelope("q", b"2", priority=9), Envelope("q", b"3", delay=9)])
    deliveries = consumer.receive_many(2, 5.0)
    consumer.extend_many(deliveries, 100)
    consumer.reject_many(deliveries[:1], "no")
    broker.bus().post_many([Note("me", "event", b"x")])
    settle = broker.partner(backend)
    assert settle is not None
    settle(consumer, Turn(store=[Stored("run", 0, 1, b"x")], ack=list(deliveries[1:])))
    backend.put_blob("blob", b"x")
    backend.revoke_many([("run", 0, 1)])
    found = broker._client.one("KEYS", "*")
    assert found
    assert all(key.startswith(b"{%s}:" % prefix.encode()) for key in found)
    kept = {key: broker._client.one("PTTL", key) for key in found}
    forever = {key.partition(b":")[2].decode() for key, left in kept.items() if left == -1}
    assert forever == {
        "q0:q",
        "q9:q",
        "levels:q",
        "due:q",
        "dead:q",
        "held:q",
        "wait:q",
        "queues",
        "serial",
        "peers",
        "info",
        "revoked",
    }
    consumer.close()
    inbox.close()
    broker.remove("q")
    backend.forget_run("run")
    left = {key.partition(b":")[2].decode() for key in broker._client.one("KEYS", "*")}
    assert left == {"blob:blob", "serial"}
    broker.close()
    backend.close()


def test_ended_consumers_are_cleared_away(broker: RedisBroker) -> None:
    dead = consume(broker)
    broker.publish_many([Envelope("q", b"x")])
    assert len(dead.receive_many(1, 5.0)) == 1
    dead._line.close()  # as a killed process leaves it
    broker._client.one("ZADD", f"{broker._base}wait:q", 1, dead.name)
    living = consume(broker)
    living.receive_many(1, 0)
    assert dead.name in names_of(broker), "it still holds a message"
    broker._client.one("XCLAIM", f"{broker._base}q0:q", "qnb", living.name, 0, *_pending(broker))
    living._look_at = 0.0
    living.receive_many(1, 0)
    assert names_of(broker) == {living.name}
    assert broker._client.one("ZRANGE", f"{broker._base}wait:q", 0, -1) == [living.name.encode()]
    living.close()


def names_of(broker: RedisBroker) -> set[str]:
    """Consumers in the group of queue q."""
    return {one[1].decode() for one in broker._client.one("XINFO", "CONSUMERS", f"{broker._base}q0:q", "qnb")}


def _pending(broker: RedisBroker) -> list[bytes]:
    return [entry[0] for entry in broker._client.one("XPENDING", f"{broker._base}q0:q", "qnb", "-", "+", 10)]


def test_mailboxes_of_the_dead_expire(broker: RedisBroker) -> None:
    inbox = broker.bus().join("me")
    left = broker._client.one("TTL", f"{broker._base}in:me")
    assert 60 < left <= 900
    broker.bus().post_many([Note("me", "event", b"x"), Note("nobody", "event", b"x")])
    assert broker._client.one("TTL", f"{broker._base}in:me") > 0, "a note does not keep it"
    assert broker._client.one("EXISTS", f"{broker._base}in:nobody") == 0
    inbox.close()
    assert keys(broker) == set()


def test_an_expired_mailbox_is_made_again(broker: RedisBroker) -> None:
    inbox = broker.bus().join("me")
    broker._client.one("DEL", f"{broker._base}in:me")
    inbox._keep_at = 0.0  # type: ignore[attr-defined]
    assert inbox.receive_many(1, 0) == []
    broker.bus().post_many([Note("me", "event", b"x")])
    assert len(inbox.receive_many(1, 5.0)) == 1
    inbox.close()


def test_read_notes_are_removed(broker: RedisBroker) -> None:
    inbox = broker.bus().join("me")
    broker.bus().post_many([Note("me", "event", b"%d" % number) for number in range(50)])
    assert len(inbox.receive_many(30, 5.0)) == 30
    assert broker._client.one("XLEN", f"{broker._base}in:me") == 50, "not before they were handed out"
    assert len(inbox.receive_many(30, 5.0)) == 20
    assert broker._client.one("XLEN", f"{broker._base}in:me") == 20
    assert inbox.receive_many(30, 0) == []
    assert broker._client.one("XLEN", f"{broker._base}in:me") == 0
    inbox.close()


@pytest.mark.parametrize("levels", [1, 2])
def test_an_idle_worker_asks_little(broker: RedisBroker, sends: list[int], levels: int) -> None:
    """One that waits, is present and reads its mailbox: three commands a second, however many levels are in use."""
    consumer, inbox = consume(broker), broker.bus().join("worker")
    broker.publish_many([Envelope("q", b"x", priority=levels - 1)])
    consumer.ack_many(consumer.receive_many(1, 5.0))
    consumer.receive_many(1, 0.1)
    inbox.receive_many(1, 0)
    sends.clear()
    seconds = 3
    reader = threading.Thread(target=lambda: [inbox.receive_many(10, 1.0) for _ in range(seconds)])
    begun = time.process_time()
    reader.start()
    for _ in range(seconds):
        assert consumer.receive_many(1, 1.0) == []
        inbox.beat(b"x")
    reader.join()
    assert sum(sends) <= 3 * seconds + 1
    assert time.process_time() - begun < 0.02 * seconds
    consumer.close()
    inbox.close()
