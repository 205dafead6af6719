"""What may happen to a queue in ZooKeeper that the conformance suite does not know of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from kazoo.client import KazooClient

from qnb.brokers.base import Delivery, QueueSpec
from qnb.brokers.zookeeper.broker import ZookeeperBroker
from qnb.brokers.zookeeper.link import Link, Lost
from qnb.brokers.zookeeper.names import Content, ShardName, node_name
from qnb.errors import PayloadTooLarge
from qnb.message import Envelope
from tests.servers.zookeeper import ZookeeperServer
from tests.unit.zookeeper.conftest import OpenBroker, expire

WAIT = 10.0


def bodies(deliveries: Any) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_an_expired_session_voids_its_leases_and_goes_on(open_broker: OpenBroker, server: ZookeeperServer) -> None:
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x")])
    consumer, other = broker.consume(["q"], prefetch=10), open_broker().consume(["q"], prefetch=10)
    held = consumer.receive_many(10, WAIT)
    assert bodies(held) == [b"x"]
    expire(broker, server)
    [again] = other.receive_many(10, WAIT)
    assert again.deliveries == 2
    consumer.ack_many(held)
    consumer.release_many(held)
    other.release_many([again])
    [last] = consumer.receive_many(10, WAIT) or consumer.receive_many(10, WAIT)
    assert last.deliveries == 2, "the late ack and release changed nothing"
    consumer.ack_many([last])
    names = until(lambda: broker._link.client.get_children(broker._queues.path("q", "consumers")))
    assert len(names) == 2, "it has signed in again"


def test_a_foreign_node_is_a_message(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    broker.declare(QueueSpec("q"))
    bare.create(broker._queues.path("q", "ready", "stranger"), b"not from here")
    bare.create(broker._queues.path("q", "ready", "a folder"))
    bare.create(broker._queues.path("q", "ready", "a folder", "with something in it"))
    consumer = broker.consume(["q"], prefetch=10)
    got = list(consumer.receive_many(10, WAIT))
    assert bodies(got) == [b"not from here"]
    consumer.reject_many(got, "not of qnb")
    assert [letter.body for letter in broker.dead_letters("q")] == [b"not from here"]
    assert list(consumer.receive_many(10, 0.1)) == []
    broker.remove("q")
    assert list(broker.queues()) == []


def test_a_spoilt_pack_is_a_body(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x")])
    [(path, _)] = broker._queues.shards("q")
    bare.set(path, b"\xc1 overwritten")
    consumer = broker.consume(["q"], prefetch=10)
    got = consumer.receive_many(10, WAIT)
    assert bodies(got) == [b"\xc1 overwritten"]
    consumer.ack_many(got)
    assert broker.depth("q") == 0


def test_foreign_things_in_a_shard_do_not_keep_its_message(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x")])
    [(path, _)] = broker._queues.shards("q")
    bare.create(f"{path}/stranger")
    consumer = broker.consume(["q"], prefetch=10)
    got = consumer.receive_many(10, WAIT)
    consumer.ack_many(got)
    assert bodies(got) == [b"x"]
    assert broker.depth("q") == 0
    assert list(consumer.receive_many(10, 0.1)) == []


def test_settled_shards_leave_nothing_behind(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    big = b"x" * 50_000
    broker.publish_many([Envelope("q", big) for _ in range(9)] + [Envelope("q", b"later", delay=0.05)])
    first, second = broker.consume(["q"], prefetch=4), open_broker().consume(["q"], prefetch=100)
    taken: list[bytes] = []

    def settle() -> bool:
        for consumer in (first, second):
            got = consumer.receive_many(4, 0.05)
            taken.extend(bodies(got))
            consumer.ack_many(got)
        return len(taken) == 10

    until(settle)
    for branch in ("ready", "delayed"):
        until(lambda branch=branch: not bare.get_children(broker._queues.path("q", branch)))


def test_a_broken_claim_leaves_no_lock(open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after the server has made the locks, and before it could say so."""
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x"), Envelope("q", b"y")])
    consumer = broker.consume(["q"], prefetch=10)
    broken = []
    finish = Link.finish

    def break_once(self: Link, sent: Any) -> list[Any]:
        answers = finish(self, sent)
        if not broken and any(isinstance(answer, list) and "/l00" in str(answer) for answer in answers):
            broken.append(answers)
            raise Lost("as if")
        return answers

    monkeypatch.setattr(Link, "finish", break_once)
    got: list[Delivery] = []

    def receive() -> bool:
        got.extend(consumer.receive_many(10, 1.0))
        return len(got) == 2

    until(receive)
    assert broken
    assert sorted((one.body, one.deliveries) for one in got) == [(b"x", 2), (b"y", 2)]


def test_a_broken_publish_is_not_repeated(open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = open_broker()
    broker.declare(QueueSpec("q"))
    broken = []
    attempt = Link.attempt

    def break_once(self: Link, starts: Any) -> list[Any]:
        answers = attempt(self, starts)
        if not broken:
            broken.append(answers)
            raise Lost("as if")
        return answers

    monkeypatch.setattr(Link, "attempt", break_once)
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(500)])
    assert broken
    assert broker.depth("q") == 500


def test_what_is_too_large_is_never_sent(open_broker: OpenBroker) -> None:
    """A packet over the server's limit would end the connection, and every lease with it."""
    broker = open_broker()
    limit = broker.features.limits.message_bytes
    assert limit is not None
    session = broker._link.session_id
    with pytest.raises(PayloadTooLarge):
        broker.publish_many([Envelope("q", b"x" * (limit + 1))])
    largest = bytes(limit)
    broker.publish_many([Envelope("q", largest, delay=0.01), Envelope("q" * 200, largest), Envelope("q", largest)])
    consumer = broker.consume(["q"], prefetch=10)
    got: list[Delivery] = []
    until(lambda: got.extend(consumer.receive_many(10, 1.0)) or len(got) == 2)
    consumer.release_many(got[:1], 0.01)
    consumer.reject_many(got[1:], "x" * 100_000)
    assert [len(one.body) for one in consumer.receive_many(10, WAIT)] == [limit]
    [letter] = broker.dead_letters("q")
    assert len(letter.body) == limit
    assert broker._link.session_id == session


def test_the_newest_dead_letters_are_kept(open_broker: OpenBroker) -> None:
    broker = open_broker(dead_letters=5)
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(100)])
    consumer = broker.consume(["q"], prefetch=1000)
    got: list[Delivery] = []
    until(lambda: got.extend(consumer.receive_many(100, 1.0)) or len(got) == 100)
    for one in got:
        consumer.reject_many([one], "no")
    until(lambda: len(broker.dead_letters("q", 1000)) == 5)
    assert [letter.body for letter in broker.dead_letters("q")] == [b"%d" % number for number in (99, 98, 97, 96, 95)]


def test_a_larger_limit_of_the_server_may_be_used(open_broker: OpenBroker) -> None:
    small, large = open_broker(), open_broker(jute_maxbuffer=4_194_304)
    assert small.features.limits.message_bytes is not None
    assert large.features.limits.message_bytes == small.features.limits.message_bytes + 4_194_304 - 1_048_575


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_wrong_clock_delays_by_the_server_s(
    open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """The publisher's machine is an hour off."""
    right = time.time
    monkeypatch.setattr("qnb.brokers.zookeeper.queue.time.time", lambda: right() + skew)
    wrong = open_broker()
    monkeypatch.undo()
    broker = open_broker()
    monkeypatch.setattr("qnb.brokers.zookeeper.queue.time.time", lambda: right() + skew)
    wrong.publish_many([Envelope("q", b"later", delay=0.5), Envelope("q", b"now")])
    monkeypatch.undo()
    begun = time.monotonic()
    consumer = broker.consume(["q"], prefetch=10)
    assert bodies(consumer.receive_many(10, WAIT)) == [b"now"]
    assert bodies(consumer.receive_many(10, WAIT)) == [b"later"]
    assert 0.2 < time.monotonic() - begun < 3.0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "zookeeper", "ü ~ %", "q" * 300])
def test_any_name_is_a_node(open_broker: OpenBroker, name: str) -> None:
    broker = open_broker()
    broker.publish_many([Envelope(name, b"x")])
    assert list(broker.queues()) == [name]
    assert broker.depth(name) == 1


def test_names_of_shards_say_what_is_in_them(open_broker: OpenBroker) -> None:
    broker = open_broker()
    urgent = broker._queues.draft("q", 9, 0.0, [(b"a", 0), (b"b", 2)])
    plain = broker._queues.draft("q", 0, 5.0, [(b"x" * 40_000, 0)] * 2)
    [first, second] = [ShardName.parse(draft.path.rpartition("/")[2]) for draft in (urgent, plain)]
    assert first is not None
    assert second is not None
    assert (first.priority, first.count, first.packs) == (9, 2, 1)
    assert (second.priority, second.count, second.packs) == (0, 2, 2)
    assert second.due > first.due + 4
    assert first.text < second.text
    assert ShardName.parse("stranger") is None
    children = [operation.path.rpartition("/")[2] for operation in plain.operations[1:]]
    content = Content.parse([*children, "l0001", "odd", "m1"])
    assert content.free == ["m0000-0-0"]
    assert (content.locked, content.packs) == ({1}, ["p1"])


def test_node_names_differ() -> None:
    assert len({node_name(name) for name in ("", "%", ".", "%2E", "~", "a/b", "a%2Fb")}) == 7


def test_the_broker_s_features_are_its_own(open_broker: OpenBroker) -> None:
    larger = open_broker(jute_maxbuffer=4 * 2**20).features.limits.message_bytes
    assert larger is not None
    assert larger > (ZookeeperBroker.features.limits.message_bytes or 0)
