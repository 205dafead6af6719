"""A Redis that goes away, comes back, or is somebody else now."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.redis.broker import RedisBroker
from qnb.errors import BackendUnavailable, BrokerUnavailable
from qnb.message import Envelope, Note, Stored
from tests.services import Services, with_options
from tests.unit.redis.fake import FakeRedis, Replies, information
from tests.unit.redis.help import consume


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
    assert 0.4 < time.monotonic() - begun < 5
    threading.Timer(0.2, consumer.wake).start()
    begun = time.monotonic()
    assert consumer.receive_many(1, 20) == []
    assert time.monotonic() - begun < 5
    begun = time.monotonic()
    broker.close()
    consumer.close()
    assert time.monotonic() - begun < 5


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
    monkeypatch.setattr("qnb.brokers.redis.client.REPLY_SECONDS", 0.5)
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
    monkeypatch.setattr("qnb.brokers.redis.client._PING_SECONDS", 0.2)
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


def test_scripts_are_loaded_when_the_server_lost_them(broker: RedisBroker) -> None:
    broker.publish_many([Envelope("q", b"x", priority=1)])
    broker._client.one("SCRIPT", "FLUSH")
    batch = [Envelope("q", b"1"), Envelope("q", b"2", priority=2), Envelope("q", b"3"), Envelope("q", b"4", delay=5)]
    broker.publish_many(batch)
    assert broker.depth("q") == 5, "each once: only what the server refused is sent again"
