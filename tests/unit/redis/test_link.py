"""Ways in to a Redis: URLs, sockets, TLS, Sentinel, credentials, and what is said when it does not work."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.link import open_link, target_of
from qnb.errors import AccessDenied, BackendUnavailable, BrokerUnavailable, ConfigurationError
from qnb.message import Envelope
from qnb.settings import parse_url
from tests.servers.base import free_port
from tests.servers.redis import RedisServer
from tests.services import Services, with_options
from tests.unit.redis.fake import FakeRedis, information


@pytest.fixture
def server(services: Services) -> RedisServer:
    return services.shared("redis")


def works(url: str) -> None:
    broker = RedisBroker(with_options(url, prefix="way-in"))
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    broker.remove("q")
    broker.close()


def test_unix_socket(server: RedisServer) -> None:
    works(f"redis+socket://{server.socket_path}?db=3")
    works(f"unix://{server.socket_path}")


def test_databases_are_apart(server: RedisServer) -> None:
    one, two = RedisBroker(f"redis://127.0.0.1:{server.port}/1"), RedisBroker(f"redis://127.0.0.1:{server.port}?db=2")
    one.publish_many([Envelope("q", b"x")])
    assert (one.depth("q"), two.depth("q")) == (1, 0)
    one.remove("q")
    one.close()
    two.close()


def test_password_and_user(services: Services) -> None:
    password = "p@ss/w:rd ü?"
    server = services.redis(requirepass=f'"{password}"')
    place = f"127.0.0.1:{server.port}/0"
    works(f"redis://:{quote(password, safe='')}@{place}")
    works(f"redis://default:{quote(password, safe='')}@{place}")
    for login, remedy in (
        ("", "wants a password"),
        (":wrong@", "check user and password"),
        ("nobody:x@", "check user"),
    ):
        with pytest.raises(AccessDenied, match=remedy) as caught:
            RedisBroker(f"redis://{login}{place}")
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with pytest.raises(AccessDenied):
        RedisBackend(f"redis://:wrong@{place}")


def test_a_password_where_none_is_wanted(server: RedisServer) -> None:
    with pytest.raises(AccessDenied, match="check user and password"):
        RedisBroker(f"redis://:secret@127.0.0.1:{server.port}")


def test_a_user_without_rights(services: Services) -> None:
    server = services.redis(user="poor on >poor ~* +@connection +info +config")
    broker = RedisBroker(f"redis://poor:poor@127.0.0.1:{server.port}")
    with pytest.raises(AccessDenied, match="lacks a right"):
        broker.publish_many([Envelope("q", b"x")])
    broker.close()


def test_a_user_who_may_not_see_the_settings(services: Services) -> None:
    server = services.redis(user="qnb on >pw ~{way-in}* +@all -@admin -@dangerous -config -info")
    works(f"redis://qnb:pw@127.0.0.1:{server.port}")


def test_the_password_shows_nowhere(services: Services) -> None:
    server = services.redis(requirepass="topsecret")
    broker = RedisBroker(f"redis://:topsecret@127.0.0.1:{server.port}?sentinel_password=topsecret")
    assert "topsecret" not in f"{broker.url} {broker._client.target!r} {broker!r}"
    broker.close()


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("redis://host/abc", "'abc' is not a database number"),
        ("redis://host?prefix={x}", "braces"),
        ("redis://host?prefix=", "prefix"),
        ("redis://host?laese=3", "no option 'laese'"),
        ("redis://host?lease=soon", "lease='soon'"),
        ("redis://host?lease=0", "lease"),
        ("redis+socket://", "name the socket"),
        ("redis+sentinel://host:26379/0", "master"),
        ("rediss://127.0.0.1?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("rediss://127.0.0.1?ssl_wrong=1", "ssl_wrong"),
    ],
)
def test_urls_that_make_no_sense(url: str, complaint: str, services: Services) -> None:
    port = services.shared("redis").port
    with pytest.raises(ConfigurationError, match=complaint):
        RedisBroker(url.replace("127.0.0.1", f"127.0.0.1:{port}"))


def test_targets() -> None:
    def of(url: str) -> object:
        return target_of(parse_url(url))

    assert of("redis://h") == of("redis://h:6379/0") == of("redis://h/0?lease=3&prefix=x")
    assert of("redis://h/1") != of("redis://h/0")
    assert of("redis+socket:///run/r.sock?db=2") == of("unix:///run/r.sock?db=2")
    sentinel = target_of(parse_url("sentinel://a,b:1234/2?master=m"))
    assert (sentinel.hosts, sentinel.master, sentinel.db) == ((("a", 26379), ("b", 1234)), "m", 2)


def test_no_such_database(server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="no database 9999"):
        RedisBroker(f"redis://127.0.0.1:{server.port}/9999")


# ------------------------------------------------------------ unreachable


def quickly_refused(url: str, *words: str) -> None:
    for kind, error in ((RedisBroker, BrokerUnavailable), (RedisBackend, BackendUnavailable)):
        begun = time.monotonic()
        with pytest.raises(error) as caught:
            kind(url)
        assert time.monotonic() - begun < 5
        assert caught.value.__cause__ is not None
        for word in words:
            assert word in str(caught.value)


def test_nobody_listens() -> None:
    port = free_port()
    quickly_refused(f"redis://127.0.0.1:{port}/0", f"127.0.0.1:{port}", "refused", "redis-server", "redis-cli")


def test_no_such_socket(tmp_path: Path) -> None:
    quickly_refused(f"redis+socket://{tmp_path}/none.sock", "none.sock", "socket")


def test_no_such_host() -> None:
    quickly_refused("redis://no-such-host.invalid", "no-such-host.invalid:6379")


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quickly_refused(f"redis://127.0.0.1:{silent.getsockname()[1]}", "firewall")


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRedis]:
    made = FakeRedis(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("fake", [information("# Server\r\nredis_version:6.0.16\r\n")], indirect=True)
def test_a_server_that_is_too_old(fake: FakeRedis) -> None:
    with pytest.raises(ConfigurationError, match=r"6\.0\.16.*6\.2"):
        RedisBroker(fake.url)


@pytest.mark.parametrize("fake", [{b"SELECT": b"-DENIED Redis is running in protected mode\r\n"}], indirect=True)
def test_protected_mode(fake: FakeRedis) -> None:
    with pytest.raises(AccessDenied, match="protected mode"):
        RedisBroker(fake.url)


@pytest.mark.parametrize("fake", [{b"SELECT": b"-LOADING Redis is loading the dataset in memory\r\n"}], indirect=True)
def test_a_server_that_loads_for_too_long(fake: FakeRedis) -> None:
    begun = time.monotonic()
    with pytest.raises(Exception, match="LOADING"):
        RedisBroker(fake.url)
    assert 1 < time.monotonic() - begun < 5


@pytest.mark.parametrize("fake", [{b"SELECT": b"HTTP/1.1 400 Bad Request\r\n"}], indirect=True)
def test_something_that_is_no_redis(fake: FakeRedis) -> None:
    with pytest.raises(BrokerUnavailable, match="Redis"):
        RedisBroker(fake.url)


# ------------------------------------------------------------ TLS


def test_tls_certificates_are_checked(services: Services, tmp_path: Path) -> None:
    server = services.shared("tls")
    works(server.url)
    bare = server.url.partition("?")[0]
    works(bare + "?ssl_cert_reqs=none")
    with pytest.raises(BrokerUnavailable, match="certificate"):
        RedisBroker(bare)
    with pytest.raises(ConfigurationError, match="ssl_"):
        RedisBroker(f"{bare}?ssl_ca_certs={tmp_path}/none.pem")
    with pytest.raises(BrokerUnavailable):  # TLS to a port that speaks plainly
        RedisBroker(f"rediss://127.0.0.1:{server.port}?ssl_cert_reqs=none")


def test_tls_through_a_wrong_name(services: Services) -> None:
    server = services.shared("tls")
    url = server.url.replace("localhost", "127.0.0.1")
    with pytest.raises(BrokerUnavailable, match="certificate"):
        RedisBroker(url)
    works(with_options(url, ssl_check_hostname="false"))


# ------------------------------------------------------------ credentials that change

LOGINS: list[object] = []


def log_in() -> object:
    """What the test put there; an exception is raised."""
    login = LOGINS[-1]
    if isinstance(login, Exception):
        raise login
    return login


PROVIDER = f"{__name__}:log_in"


def test_credentials_are_asked_for_at_each_login(services: Services) -> None:
    server = services.redis(user="qnb on >first ~* +@all")
    LOGINS.append(("qnb", "first"))
    broker = RedisBroker(f"redis://127.0.0.1:{server.port}/0?credentials={PROVIDER}")
    broker.publish_many([Envelope("q", b"x")])
    server.tell("ACL", "SETUSER", "qnb", "resetpass", ">second")
    LOGINS.append(("qnb", "second"))
    server.tell("CLIENT", "KILL", "USER", "qnb")
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 2
    assert "second" not in f"{broker._client.target!r} {broker.url}"
    broker.close()


def test_a_password_alone_may_be_provided(services: Services) -> None:
    server = services.redis(requirepass="found")
    LOGINS.append("found")
    works(f"redis://127.0.0.1:{server.port}/0?credentials={PROVIDER}")


@pytest.mark.parametrize(
    "credentials, login, error, complaint",
    [
        ("no.such.module:f", "", ConfigurationError, "no function no.such.module:f"),
        (f"{__name__}:none", "", ConfigurationError, "no function"),
        ("f", "", ConfigurationError, "module:function"),
        (PROVIDER, 3, ConfigurationError, "return a password"),
        (PROVIDER, RuntimeError("the-secret"), BrokerUnavailable, "no credentials but RuntimeError"),
    ],
)
def test_credentials_that_are_none(
    server: RedisServer, credentials: str, login: object, error: type[Exception], complaint: str
) -> None:
    LOGINS.append(login)
    with pytest.raises(error, match=complaint) as caught:
        RedisBroker(f"redis://127.0.0.1:{server.port}/0?credentials={credentials}")
    assert "the-secret" not in str(caught.value)


# ------------------------------------------------------------ cost


def test_importing_is_light() -> None:
    """A cold script has 0.15 s for everything; redis-py alone would take more."""
    code = "import sys, qnb.brokers.redis.broker, qnb.backends.redis; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("redis", "asyncio", "ssl", "urllib.request", "http"):
        assert f"'{heavy}'" not in loaded


def test_large_payloads_move_fast(server: RedisServer) -> None:
    broker = RedisBroker(with_options(server.url, prefix="large"))
    body = bytes(1 << 20)
    broker.publish_many([Envelope("q", body)] * 30)
    consumer = broker.consume(["q"], prefetch=100)
    begun = time.perf_counter()
    got = 0
    while got < 30:
        deliveries = consumer.receive_many(8, 5.0)
        got += len(deliveries)
        consumer.ack_many(deliveries)
    assert 30 / (time.perf_counter() - begun) > 50, "MiB/s; hundreds on an idle machine"
    consumer.close()
    broker.close()


def test_a_closed_link_keeps_nothing(server: RedisServer) -> None:
    """It has a buffer of its own, and an outage closes many: none waits for the garbage collector."""
    link = open_link(target_of(parse_url(server.url)))
    link.send([("PING",)])
    link.close()
    gone = weakref.ref(link)
    gc.disable()
    try:
        del link
        assert gone() is None
    finally:
        gc.enable()
