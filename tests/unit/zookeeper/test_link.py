"""Connecting to ZooKeeper: what is refused, what is waited for, and what is told."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from qnb.brokers.base import QueueSpec
from qnb.brokers.zookeeper.batch import Item, _Batch, _sort_out, chunks, delete
from qnb.brokers.zookeeper.broker import ZookeeperBroker
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError
from qnb.message import Envelope
from tests.servers.base import free_port
from tests.servers.zookeeper import JARS, ZookeeperServer
from tests.services import Services, with_options
from tests.unit.zookeeper.conftest import OpenBroker


@pytest.mark.parametrize("kind", ["closed port", "no host", "no ZooKeeper"])
def test_what_cannot_be_reached_is_named_in_time(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = {
            "closed port": f"127.0.0.1:{free_port()}",
            "no host": "nowhere.invalid:2181",
            "no ZooKeeper": f"127.0.0.1:{listener.getsockname()[1]}",
        }[kind]
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=place.replace(".", r"\.")) as caught:
            ZookeeperBroker(f"zookeeper://me:hush@{place}/")
        assert time.monotonic() - begun < 6
    assert "hush" not in str(caught.value)
    assert "firewall" in str(caught.value)


@pytest.mark.parametrize(
    "query, said", [("acl=private", "acl="), ("leese=3", "leese"), ("use_ssl=maybe", "use_ssl"), ("lease=x", "lease")]
)
def test_options_that_make_no_sense(query: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ZookeeperBroker(f"zookeeper://127.0.0.1:1/?{query}")


def test_a_password_keeps_others_out(open_broker: OpenBroker) -> None:
    mine = open_broker("ann:hush")
    mine.publish_many([Envelope("q", b"x")])
    for login in ("", "ann:wrong", "bob:hush"):
        with pytest.raises(AccessDenied, match="widen its ACL") as caught:
            open_broker(login).publish_many([Envelope("q", b"y")])
        assert "hush" not in str(caught.value)
        assert "wrong" not in str(caught.value)
    again = open_broker("ann:hush")
    consumer = again.consume(["q"], prefetch=10)
    got = consumer.receive_many(10, 5.0)
    assert [one.body for one in got] == [b"x"]
    consumer.ack_many(got)
    assert (again.depth("q"), "hush" in repr(vars(again))) == (0, False)


def test_an_open_place_with_a_password(open_broker: OpenBroker) -> None:
    open_broker("ann:hush", acl="open").publish_many([Envelope("q", b"x")])
    assert open_broker().depth("q") == 1


def test_a_chroot_of_its_own(server: ZookeeperServer, services: Services, bare: KazooClient) -> None:
    word = services.word()
    broker = ZookeeperBroker(f"{server.url}/{word}/deep")
    broker.declare(QueueSpec("q"))
    assert bare.get_children(f"/{word}/deep/qnb/queues") == ["q"]
    broker.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        broker.publish_many([Envelope("q", b"x")])


def test_a_host_that_is_down_is_passed_over(server: ZookeeperServer, services: Services) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{server.port}"
    broker = ZookeeperBroker(f"zookeeper://{hosts}?prefix={services.word()}")
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    broker.close()


def test_an_outage_is_waited_for_and_then_told(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    server = services.own(ZookeeperServer)
    broker = ZookeeperBroker(with_options(server.url, patience=1.0))
    broker.declare(QueueSpec("q"))
    consumer, inbox = broker.consume(["q"], prefetch=10), broker.bus().join("me")
    with caplog.at_level(logging.INFO):
        server.kill()
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=str(server.port)):
            broker.publish_many([Envelope("q", b"x")])
        assert 0.9 < time.monotonic() - begun < 6
        for receive in (consumer.receive_many, inbox.receive_many):
            with pytest.raises(BrokerUnavailable):
                receive(10, 10.0)
            begun = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                receive(10, 0)
            assert time.monotonic() - begun < 1
    assert caplog.records == []
    starting = threading.Timer(0.1, server.start)
    starting.start()
    starting.join()
    broker._link.patience = 30.0  # it takes connections before it gives sessions
    broker.publish_many([Envelope("q", b"x")])
    assert [one.body for one in consumer.receive_many(10, 10.0)] == [b"x"]
    broker.close()


def test_closing_without_a_server_is_quick(services: Services) -> None:
    server = services.own(ZookeeperServer)
    broker = ZookeeperBroker(server.url)
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=10)
    assert len(consumer.receive_many(10, 5.0)) == 1
    broker.bus().join("me").beat(b"here")
    server.kill()
    begun = time.monotonic()
    broker.close()
    assert time.monotonic() - begun < 5


def test_transactions_stay_below_the_limits() -> None:
    items = [Item([delete("/" + "x" * 1000)]) for _ in range(1000)]
    packed = chunks(items, 100_000)
    assert [item for chunk in packed for item in chunk] == items
    assert all(len(chunk) <= 100_000 // 1065 for chunk in packed)
    small = chunks([Item([delete("/x")] * 3) for _ in range(1000)], 1_000_000)
    assert max(map(len, small)) == 83


def test_a_few_failures_cost_a_try_each_and_many_are_taken_apart() -> None:
    from kazoo.exceptions import NoNodeError, RolledBackError, RuntimeInconsistency

    items = [Item([delete("/a"), delete("/b")]) for _ in range(10)]
    results = [*([RolledBackError()] * 5), NoNodeError(), *([RuntimeInconsistency()] * 14)]
    link = object()
    [rest] = _sort_out(link, _Batch(items, []), results)  # type: ignore[arg-type]
    assert isinstance(items[2].error, NoNodeError)
    assert rest.items == items[:2] + items[3:]
    rest.failures = 2
    parts = _sort_out(link, rest, [NoNodeError(), *([RuntimeInconsistency()] * 17)])  # type: ignore[arg-type]
    assert [len(part.items) for part in parts] == [1] * 8


class TlsServer(ZookeeperServer):
    """With a port for TLS beside the plain one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not shutil.which("openssl"):
            pytest.skip("no openssl command to make a certificate with")
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*make, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True)
        both = (folder / "key.pem").read_text() + (folder / "cert.pem").read_text()
        (folder / "both.pem").write_text(both)
        self.secure = free_port()
        lines = {
            "secureClientPort": self.secure,
            "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
            "ssl.keyStore.location": folder / "both.pem",
            "ssl.trustStore.location": folder / "cert.pem",
            "ssl.clientAuth": "none",
        }
        with (folder / "zoo.cfg").open("a") as config:
            config.write("".join(f"{name}={value}\n" for name, value in lines.items()))

    def command(self) -> list[str]:
        command = super().command()
        at = command.index("-cp") + 1
        parts = ("buffer", "codec", "common", "handler", "resolver", "transport", "transport-native-unix-common")
        jars = [JARS[0].with_name(f"netty-{part}.jar") for part in (*parts, "transport-native-epoll")]
        command[at] = ":".join([command[at], *map(str, jars)])
        return command


# kazoo leaves a socket whose handshake failed to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls(services: Services) -> None:
    server = services.own(TlsServer)
    url = f"zookeeper://localhost:{server.secure}?use_ssl=true&ca={server.folder}/cert.pem"
    broker = ZookeeperBroker(url)
    broker.publish_many([Envelope("q", b"x" * 100_000) for _ in range(20)])
    consumer = broker.consume(["q"], prefetch=100)
    got = list(consumer.receive_many(100, 5.0))
    consumer.ack_many(got)
    assert len(got) == 20
    assert broker.depth("q") == 0
    broker.close()
    for query, said in (("use_ssl=true", "ca=FILE"), ("", "no session")):
        with pytest.raises(BrokerUnavailable, match=said):
            ZookeeperBroker(f"zookeeper://localhost:{server.secure}?{query}")
    with pytest.raises(BrokerUnavailable, match="no TLS"):
        ZookeeperBroker(f"zookeeper://localhost:{server.port}?use_ssl=true")
