"""The bus on ZooKeeper: notes over the limit, mailboxes that are left behind, presence of the dead."""

from __future__ import annotations

import time

import pytest
from kazoo.client import KazooClient

from qnb.brokers.base import PRESENCE_SECONDS
from qnb.brokers.zookeeper import bus as zookeeper_bus
from qnb.brokers.zookeeper.bus import ZookeeperInbox
from qnb.brokers.zookeeper.link import Link
from qnb.message import Note
from tests.conformance.help import Place, read
from tests.servers.zookeeper import ZookeeperServer
from tests.services import BROKERS, Services
from tests.unit.zookeeper.conftest import OpenBroker, expire

PEER = """
import sys
from qnb.registry import open_broker
inbox = open_broker(sys.argv[1]).bus().join("child")
inbox.beat(b"here")
print("there", flush=True)
while True:
    inbox.receive_many(10, 0.5)
    inbox.beat(b"here")
"""


def test_notes_over_the_limit_come_whole_and_in_order(open_broker: OpenBroker) -> None:
    inbox = open_broker().bus().join("me")
    sent = [Note("me", "event", bytes([number]) * size) for number, size in enumerate((10, 3_000_000, 700_000, 5))]
    open_broker().bus().post_many([*sent, *sent])
    assert read(inbox, 8) == [*sent, *sent]


def test_what_is_posted_twice_after_a_broken_connection_is_read_once(
    open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, bus = open_broker().bus().join("me"), open_broker().bus()
    calls = Link.call_many
    monkeypatch.setattr(
        Link, "call_many", lambda self, starts, patience=None: (calls(self, starts), calls(self, starts))[1]
    )
    bus.post_many([Note("me", "event", b"1"), Note("me", "event", b"2")])
    monkeypatch.undo()
    bus.post_many([Note("me", "event", b"3")])
    assert [note.body for note in read(inbox, 3)] == [b"1", b"2", b"3"]
    assert list(inbox.receive_many(10, 0)) == []


def test_an_expired_session_keeps_its_mailbox_and_its_presence(
    open_broker: OpenBroker, server: ZookeeperServer
) -> None:
    broker, other = open_broker(), open_broker()
    inbox = broker.bus().join("me")
    inbox.beat(b"one")
    other.bus().post_many([Note("me", "event", b"before")])
    expire(broker, server)
    other.bus().post_many([Note("me", "event", b"after")])
    assert [note.body for note in read(inbox, 2)] == [b"before", b"after"]
    inbox.beat(b"two")
    assert [presence.info for presence in other.bus().peers()] == [b"two"]


def test_presence_comes_back_after_its_session_expired(open_broker: OpenBroker, server: ZookeeperServer) -> None:
    broker, other = open_broker(lease=1), open_broker()
    inbox = broker.bus().join("me")
    inbox.beat(b"same")
    assert broker.bus().attendance._link is broker._link, "short enough for both"
    expire(broker, server)
    end = time.monotonic() + 10
    while not other.bus().peers() and time.monotonic() < end:
        inbox.receive_many(10, 0.05)
        inbox.beat(b"same")
    assert [presence.info for presence in other.bus().peers()] == [b"same"]


def test_a_killed_peer_is_gone_in_time(services: Services) -> None:
    [case] = [case for case in BROKERS if case.label == "zookeeper"]
    place = Place(case.place(services), case)
    bus = place.broker().bus()
    process = place.process(PEER, place.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert [presence.peer for presence in bus.peers()] == ["child"]
    process.kill()
    begun = time.monotonic()
    while bus.peers():
        assert time.monotonic() - begun < PRESENCE_SECONDS + 3.0  # a busy machine is late
        time.sleep(0.02)
    place.close()


def test_where_the_server_keeps_sessions_for_long_the_beats_are_stamped(
    open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tick may be 2 s, as by default: then no session is shorter than 4 s."""
    broker, other = open_broker(), open_broker()
    inbox = broker.bus().join("me")
    inbox.beat(b"x")
    attendance = broker.bus().attendance
    link = attendance._link
    assert link is not None
    link.negotiated = 4.0
    inbox.beat(b"y")
    link.close()  # it is silent, and its node stays: as when a process was killed
    inbox_dead = ZookeeperInbox(other.bus(), "dead")
    other.bus().attendance._open().negotiated = 4.0
    inbox_dead.beat(b"z")
    monkeypatch.setattr(other.bus().attendance, "_remove", lambda path: None)
    assert [presence.info for presence in other.bus().peers("dead")] == [b"z"]
    begun = time.monotonic()
    while other.bus().peers("dead"):
        assert time.monotonic() - begun < PRESENCE_SECONDS + 3
        time.sleep(0.05)
    assert time.monotonic() - begun > PRESENCE_SECONDS - 0.3


def test_an_abandoned_mailbox_is_removed_by_whoever_notices(
    open_broker: OpenBroker, bare: KazooClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, living = open_broker(), open_broker()
    gone.bus().join("gone")
    kept = living.bus().join("kept")
    living.bus().post_many([Note("gone", "event", b"unread"), Note("kept", "event", b"x")])
    gone._link.close()  # with its session, and without a word
    monkeypatch.setattr(zookeeper_bus, "_CLEAN_EVERY", 0.0)
    cleaner = open_broker().bus()
    top = f"{cleaner.root}/mail"
    cleaner.peers()
    cleaner.peers()
    assert sorted(bare.get_children(top)) == ["gone", "kept"], "not before it was left for long"
    monkeypatch.setattr(zookeeper_bus, "ABANDONED_SECONDS", -1.0)
    cleaner.peers()
    assert bare.get_children(top) == ["kept"]
    assert [note.body for note in read(kept, 1)] == [b"x"]


def test_a_mailbox_that_was_removed_is_made_again(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    inbox = broker.bus().join("me")
    broker.bus().post_many([Note("me", "event", b"1"), Note("me", "event", b"2")])
    assert len(read(inbox, 2)) == 2
    bare.delete(broker.bus().mailbox("me"), recursive=True)
    inbox.receive_many(1, 0.2)
    broker.bus().post_many([Note("me", "event", b"3")])
    assert [note.body for note in read(inbox, 1)] == [b"3"]


def test_what_others_put_into_a_mailbox_is_passed_over(open_broker: OpenBroker, bare: KazooClient) -> None:
    broker = open_broker()
    inbox = broker.bus().join("me")
    bare.create(f"{broker.bus().mailbox('me')}/n", b"\xc1", sequence=True)
    bare.create(f"{broker.bus().mailbox('me')}/odd")
    broker.bus().post_many([Note("me", "event", b"x")])
    assert [note.body for note in read(inbox, 1)] == [b"x"]
    inbox.close()
    assert not bare.exists(broker.bus().mailbox("me"))
