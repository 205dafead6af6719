"""What is particular to Redis as a broker: settings, memory, lost data, outages, and what it costs."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers import redis_server
from qnb.brokers.base import Turn
from qnb.brokers.redis import RedisBroker
from qnb.brokers.redis_consumer import RedisConsumer
from qnb.brokers.redis_link import Command, Link
from qnb.brokers.redis_server import RedisSettingsWarning
from qnb.errors import BackendUnavailable, BrokerUnavailable, PayloadTooLarge, StorageFull
from qnb.message import Envelope, Note, Stored
from tests.fake_redis import FakeRedis, Replies, information
from tests.services import Services, with_options


@pytest.fixture
def url(services: Services) -> str:
    return with_options(services.shared("redis").url, prefix=services.word())


@pytest.fixture
def broker(url: str) -> Iterator[RedisBroker]:
    made = RedisBroker(url)
    yield made
    made.close()


def keys(broker: RedisBroker) -> set[str]:
    """Every key of this broker's prefix."""
    found = broker._client.one("KEYS", broker._base.replace("{", "\\{") + "*")
    return {key.decode().removeprefix(broker._base) for key in found}


def consume(broker: RedisBroker, *queues: str, prefetch: int = 100) -> RedisConsumer:
    consumer = broker.consume(queues or ("q",), prefetch=prefetch)
    assert isinstance(consumer, RedisConsumer)
    return consumer


# ------------------------------------------------------------ settings of the server


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
    monkeypatch.setattr("qnb.brokers.redis_settle.LARGEST_VALUE", 1000)
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


# ------------------------------------------------------------ outages


def test_patience_has_an_end(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    server = services.redis()
    broker, backend = (
        RedisBroker(with_options(server.url, patience=1)),
        RedisBackend(with_options(server.url, patience=1)),
    )
    consumer, inbox = consume(broker), broker.bus().join("me")
    assert consumer.receive_many(1, 0) == []
    server.kill()
    for call, error in (
        (lambda: broker.publish_many([Envelope("q", b"x")]), BrokerUnavailable),
        (lambda: backend.store_many([Stored("run", 0, 1, b"x")]), BackendUnavailable),
        (lambda: consumer.receive_many(1, 5.0), BrokerUnavailable),
        (lambda: inbox.receive_many(1, 5.0), BrokerUnavailable),
    ):
        begun = time.monotonic()
        with pytest.raises(error, match=f"127.0.0.1:{server.port}"):
            call()
        assert 0.8 < time.monotonic() - begun < 4
    assert sum("went away" in record.message for record in caplog.records) == 4
    server.start()
    broker.publish_many([Envelope("q", b"x")])
    assert len(consumer.receive_many(1, 5.0)) == 1, "and when it is back, so is everything"
    assert inbox.receive_many(1, 0) == []
    consumer.close()
    inbox.close()
    broker.close()
    backend.close()


def test_receive_keeps_its_timeout_and_wakes_during_an_outage(services: Services) -> None:
    server = services.redis()
    broker = RedisBroker(server.url)
    consumer = consume(broker)
    assert consumer.receive_many(1, 0) == []
    server.kill()
    begun = time.monotonic()
    assert consumer.receive_many(1, 0.5) == []
    assert 0.4 < time.monotonic() - begun < 1.5
    threading.Timer(0.2, consumer.wake).start()
    begun = time.monotonic()
    assert consumer.receive_many(1, 20) == []
    assert time.monotonic() - begun < 3
    begun = time.monotonic()
    broker.close()
    consumer.close()
    assert time.monotonic() - begun < 3


class Hole:
    """A connection through which nothing passes any more, from a moment on, and nobody says so."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.open = threading.Event()
        self.open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            if not self.open.is_set():
                one.close()
                continue
            other = socket.create_connection(("127.0.0.1", self._target))
            for here, there in ((one, other), (other, one)):
                threading.Thread(target=self._pass, args=(here, there), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        with here, there:
            try:
                while data := here.recv(65536):
                    if self.open.is_set():
                        there.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


def test_a_connection_that_went_dead_in_silence(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnb.brokers.redis_client.REPLY_SECONDS", 0.5)
    server = services.shared("redis")
    hole = Hole(server.port)
    broker = RedisBroker(f"redis://127.0.0.1:{hole.port}/0?prefix={services.word()}")
    consumer = consume(broker)
    assert consumer.receive_many(1, 0) == []
    hole.open.clear()
    mend = threading.Timer(0.8, hole.open.set)
    mend.start()
    broker.publish_many([Envelope("q", b"x")])
    assert [delivery.body for delivery in consumer.receive_many(1, 10.0)] == [b"x"]
    mend.join()
    consumer.close()
    broker.close()
    hole.close()


def test_a_link_that_idled_is_tried_before_use(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = Hole(services.shared("redis").port)
    broker = RedisBroker(f"redis://127.0.0.1:{hole.port}/0?prefix={services.word()}&health_check=0")
    broker.publish_many([Envelope("q", b"x")])
    assert len(broker._client._idle) == 1
    broker.publish_many([Envelope("q", b"x")])
    monkeypatch.setattr("qnb.brokers.redis_client._PING_SECONDS", 0.2)
    hole.open.clear()
    threading.Timer(0.1, hole.open.set).start()
    begun = time.monotonic()
    broker.publish_many([Envelope("q", b"x")])
    assert time.monotonic() - begun < 3, "found out by a short ping, not by the long wait for a reply"
    broker.remove("q")
    broker.close()
    hole.close()


def test_a_failover_is_ridden_out(services: Services) -> None:
    """READONLY: the link leads to a server that is master no more."""
    server, other = services.redis(), services.redis()
    broker = RedisBroker(server.url)
    broker._client.one("REPLICAOF", "127.0.0.1", other.port)
    threading.Timer(0.5, lambda: broker._client.one("REPLICAOF", "NO", "ONE")).start()
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    broker.close()


def test_what_got_lost_on_the_way_is_given_again(broker: RedisBroker) -> None:
    """The server gave messages to a connection that broke: they do not wait for the end of their lease."""
    consumer = consume(broker)
    broker.publish_many([Envelope("q", b"%d" % number, priority=number % 2) for number in range(4)])
    held = consumer.receive_many(1, 5.0)
    other = broker._client
    for level in (1, 0):  # the reply to this went nowhere
        other.one("XREADGROUP", "GROUP", "qnb", consumer.name, "COUNT", 10, "STREAMS", f"{broker._base}q{level}:q", ">")
    assert consumer.receive_many(10, 0.1) == []
    consumer._line.close()
    again = consumer.receive_many(10, 5.0)
    assert sorted(d.body for d in [*held, *again]) == [b"0", b"1", b"2", b"3"]
    assert {d.deliveries for d in again} == {1}
    consumer._line.close()
    assert consumer.receive_many(10, 0.1) == []
    consumer.ack_many([*held, *again])
    assert broker.depth("q") == 0
    consumer.close()
    assert broker.depth("q") == 0


def test_closing_ends_a_wait_for_the_server(services: Services) -> None:
    server = services.redis()
    broker = RedisBroker(server.url)
    server.kill()
    threading.Timer(0.5, broker.close).start()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        broker.publish_many([Envelope("q", b"x")])
    assert time.monotonic() - begun < 5


# ------------------------------------------------------------ what it leaves and what it costs


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


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands went out each time something was sent."""
    found: list[int] = []
    original = Link.send

    def counted(link: Link, commands: Sequence[Command]) -> None:
        found.append(len(commands))
        original(link, commands)

    monkeypatch.setattr(Link, "send", counted)
    return found


@pytest.fixture(params=["plain", "script"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which a turn is settled."""
    monkeypatch.setattr("qnb.brokers.redis_settle._PLAIN_PARTS", 1000 if request.param == "plain" else 0)
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
    monkeypatch.setattr("qnb.brokers.redis_consumer.time.monotonic", lambda: now + consumer.lease * 0.6)
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
    from qnb.brokers.redis_settle import settle_command

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


def test_scripts_are_loaded_when_the_server_lost_them(broker: RedisBroker) -> None:
    broker.publish_many([Envelope("q", b"x", priority=1)])
    broker._client.one("SCRIPT", "FLUSH")
    batch = [Envelope("q", b"1"), Envelope("q", b"2", priority=2), Envelope("q", b"3"), Envelope("q", b"4", delay=5)]
    broker.publish_many(batch)
    assert broker.depth("q") == 5, "each once: only what the server refused is sent again"


def test_a_server_that_is_still_loading_is_asked_again() -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    note = b"*1\r\n*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$5\r\nevent\r\n$1\r\nx\r\n"
    added = [loading, loading, b"$3\r\n1-1\r\n"]
    replies: Replies = {b"EVALSHA": b":1\r\n", b"XREAD": [loading, loading, note], b"XADD": added, b"XTRIM": b":0\r\n"}
    fake = FakeRedis(information() | replies)
    broker = RedisBroker(fake.url)
    inbox = broker.bus().join("me")
    assert inbox.receive_many(1, 5.0) == [Note("me", "event", b"x")]
    broker.publish_many([Envelope("q", b"x")])
    assert added == [b"$3\r\n1-1\r\n"]
    inbox.close()
    broker.close()
    fake.close()


class _Interrupted:
    """A lock that is interrupted when it is let go: the last moment before notes are handed out."""

    def __init__(self) -> None:
        self.times = 1

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt

    def locked(self) -> bool:
        return False

    def acquire(self, timeout: float) -> bool:
        return True

    def release(self) -> None: ...


def test_ctrl_c_at_the_last_moment_loses_nothing(broker: RedisBroker) -> None:
    inbox = broker.bus().join("me")
    sent = [Note("me", "event", b"1"), Note("me", "event", b"2")]
    broker.bus().post_many(sent)
    inbox._receiving = _Interrupted()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        inbox.receive_many(10, 5.0)
    assert inbox.receive_many(10, 5.0) == sent
    inbox.close()


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
