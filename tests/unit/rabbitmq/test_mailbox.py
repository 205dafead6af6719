"""A mailbox outlives its connection; and a connection that works is not given up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from qnb.brokers.base import Inbox
from qnb.brokers.rabbitmq.broker import RabbitBroker
from qnb.message import Note
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.services import Services, with_options


@pytest.fixture
def url(services: Services) -> str:
    return with_options(services.common(RabbitServer).url, prefix=services.word(), young=0)


@pytest.fixture
def line(services: Services, url: str) -> Iterator[tuple[Proxy, str]]:
    """A network of one's own to the same server."""
    port = services.common(RabbitServer).port
    found = Proxy("127.0.0.1", port)
    yield found, url.replace(f":{port}", f":{found.port}")
    found.close()


def until(condition: Callable[[], object], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def read(inbox: Inbox, count: int) -> list[bytes]:
    """So many notes, and what more comes in the next moment."""
    got: list[Note] = []
    until(lambda: got.extend(inbox.receive_many(100, 0.1)) or len(got) >= count)
    got += inbox.receive_many(100, 0.3)
    return [note.body for note in got]


def queues(services: Services) -> list[str]:
    return services.common(RabbitServer).control("list_queues", "name").split()


def test_notes_to_a_peer_that_lost_its_connection_wait_for_it(line: tuple[Proxy, str], url: str) -> None:
    proxy, through = line
    with closing(RabbitBroker(through)) as broker, closing(RabbitBroker(url)) as other:
        inbox = broker.bus().join("me")
        other.bus().post_many([Note("me", "outcomes", b"before")])
        assert read(inbox, 1) == [b"before"]
        proxy.cut()
        until(lambda: broker._link.connection is None)
        other.bus().post_many([Note("me", "outcomes", b"%d" % number) for number in range(5)])
        proxy.mend()
        other.bus().post_many([Note("me", "outcomes", b"after")])
        assert read(inbox, 6) == [b"0", b"1", b"2", b"3", b"4", b"after"]


def test_notes_on_their_way_when_the_connection_breaks_come_once(line: tuple[Proxy, str], url: str) -> None:
    proxy, through = line
    with closing(RabbitBroker(through)) as broker, closing(RabbitBroker(url)) as other:
        inbox = broker.bus().join("me")
        sent = [b"%d" % number for number in range(300)]
        for number, body in enumerate(sent):
            other.bus().post_many([Note("me", "command", body)])
            if number % 60 == 59:
                proxy.cut()
                proxy.mend()
        assert sorted(read(inbox, len(sent)), key=int) == sent


def test_a_mailbox_goes_with_its_peer(url: str, services: Services) -> None:
    with closing(RabbitBroker(url)) as broker:
        inbox = broker.bus().join("me")
        assert [name for name in queues(services) if name == inbox._name]
        inbox.close()
        until(lambda: inbox._name not in queues(services))


def test_who_dies_leaves_no_mailbox_for_long(url: str, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnb.brokers.rabbitmq.bus._KEPT_SECONDS", 1.0)
    with closing(RabbitBroker(url)) as broker:
        inbox = broker.bus().join("me")
        broker._link.close()  # without a word
        until(lambda: inbox._name not in queues(services))


@pytest.mark.parametrize("busy", [False, True])
def test_a_connection_that_works_lives_longer_than_its_heartbeats(url: str, busy: bool) -> None:
    with closing(RabbitBroker(with_options(url, heartbeat=1))) as broker:
        inbox, first = broker.bus().join("me"), broker._link.connection
        end = time.monotonic() + 8.0  # pika looks every heartbeat + 5 seconds
        while time.monotonic() < end:
            if busy:
                broker.bus().post_many([Note("me", "event", b"x")])
            inbox.receive_many(10, 0.2)
        assert broker._link.connection is first


@pytest.mark.slow
def test_a_connection_to_a_server_that_hangs_is_given_up(services: Services) -> None:
    server, url = services.killable(RabbitServer)
    with closing(RabbitBroker(with_options(url, heartbeat=1))) as broker:
        os.killpg(server.pid, signal.SIGSTOP)
        try:
            until(lambda: broker._link.connection is None, within=15)
        finally:
            os.killpg(server.pid, signal.SIGCONT)


def test_what_comes_to_a_mailbox_that_was_made_anew_is_acked(services: Services, url: str) -> None:
    with closing(RabbitBroker(url)) as broker:
        inbox = broker.bus().join("me")
        broker.bus().post_many([Note("me", "event", b"%d" % number) for number in range(3)])
        assert len(read(inbox, 3)) == 3
        services.common(RabbitServer).control("delete_queue", inbox._name)
        broker.bus().post_many([Note("me", "event", b"after")])
        assert read(inbox, 1) == [b"after"]
        until(lambda: inbox._last == inbox._acked == 1)
