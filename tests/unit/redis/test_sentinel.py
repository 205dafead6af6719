"""Redis behind sentinels: asked for the master without redis-py, by TLS and password too."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.redis.broker import RedisBroker
from qnb.errors import AccessDenied, BackendUnavailable, BrokerUnavailable, PublishFailed
from qnb.message import Envelope
from tests.servers.base import free_port
from tests.servers.redis import RedisServer
from tests.services import Services, with_options
from tests.unit.redis.traffic import Traffic

QUORUM = 2


class Watch:
    """A master, a replica and three sentinels that agree."""

    def __init__(self, services: Services, **settings: Any) -> None:
        self.master = services.redis(repl_diskless_sync="yes")
        self.replica = services.redis(replicaof=f"127.0.0.1 {self.master.port}")
        self.sentinels = [sentinel(services, self.master, **settings) for _ in range(3)]
        until(lambda: "master_link_status:up" in self.replica.tell("INFO", "replication"))
        until(lambda: all("slaves=1,sentinels=3" in one.tell("INFO", "sentinel") for one in self.sentinels))
        self.hosts = [f"127.0.0.1:{one.port}" for one in self.sentinels]

    def replicated(self) -> bool:
        """Whether the replica has all that the master has."""
        said = self.master.tell("ROLE")
        return bool(said[2] and int(said[2][0][2]) >= said[1])


def sentinel(services: Services, master: RedisServer, **settings: Any) -> RedisServer:
    lines: dict[str, Any] = {"sentinel monitor mymaster": f"127.0.0.1 {master.port} {QUORUM}"}
    lines |= {"sentinel down-after-milliseconds mymaster": 700, "sentinel failover-timeout mymaster": 3000}
    return services.redis(sentinel=True, **lines, **settings)


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def role(server: RedisServer) -> str:
    """What it is now; nothing in the moment in which a sentinel makes it a replica, and its connections are closed."""
    try:
        return str(server.tell("ROLE")[0])
    except ConnectionError:
        return ""


def test_failover(services: Services) -> None:
    """The master is killed: all goes on at the replica that the sentinels promote, and the old one comes back."""
    watch = Watch(services)
    with Traffic(f"redis+sentinel://{','.join(watch.hosts)}/0?master=mymaster") as traffic:
        traffic.flow()
        with traffic.still:  # what the replica has not yet is lost with a master: that is Redis, and not what is tested
            until(watch.replicated)
            watch.master.kill()
        traffic.flow()
        assert traffic.broker._client.one("CONFIG", "GET", "port")[1] == b"%d" % watch.replica.port
        watch.sentinels[0].kill()
        watch.master.start()
        until(lambda: role(watch.master) == "slave")
        traffic.flow()
        traffic.finish()


def test_a_switch_without_an_accident(services: Services) -> None:
    """The old master stays up as a replica, and its links with it: they are left."""
    watch = Watch(services)
    with Traffic(f"sentinel://{';sentinel://'.join(watch.hosts)}/0?master_name=mymaster") as traffic:
        traffic.flow()
        with traffic.still:  # what the old master takes after the new one was chosen is lost: that is Sentinel
            until(watch.replicated)
            assert watch.sentinels[1].tell("SENTINEL", "FAILOVER", "mymaster") == "OK"
            until(lambda: role(watch.master) == "slave")
        traffic.flow()
        assert traffic.broker._client.one("CONFIG", "GET", "port")[1] == b"%d" % watch.replica.port
        traffic.finish()


def test_sentinels_may_be_away_or_know_nothing(services: Services) -> None:
    master = services.redis()
    good, strange, away = sentinel(services, master), services.redis(sentinel=True), services.redis(sentinel=True)
    away.kill()
    url = f"redis+sentinel://127.0.0.1:{away.port},127.0.0.1:{strange.port},127.0.0.1:{good.port}/0?master=mymaster"
    for _ in range(6):  # they are asked in any order
        RedisBroker(url).close()
    good.kill()
    with pytest.raises(BrokerUnavailable, match="mymaster") as caught:
        RedisBroker(url)
    assert "knows no 'mymaster'" in str(caught.value)
    assert "refused" in str(caught.value)


def test_a_sentinel_that_names_a_replica_is_not_believed(services: Services) -> None:
    master = services.redis()
    replica = services.redis(replicaof=f"127.0.0.1 {master.port}")
    confused = services.redis(sentinel=True, **{"sentinel monitor mymaster": f"127.0.0.1 {replica.port} 1"})
    with pytest.raises(BackendUnavailable, match="no master yet"):
        RedisBackend(f"redis+sentinel://127.0.0.1:{confused.port}/0?master=mymaster")


def test_passwords_of_sentinels_and_servers(services: Services) -> None:
    master = services.redis(requirepass="inner")
    guarded = sentinel(services, master, requirepass="outer", **{"sentinel auth-pass mymaster": "inner"})
    url = f"redis+sentinel://:inner@127.0.0.1:{guarded.port}/0?master=mymaster"
    broker = RedisBroker(with_options(url, sentinel_password="outer"))
    broker.publish_many([Envelope("q", b"x")])
    assert "outer" not in f"{broker.url} {broker._client.target!r}"
    broker.close()
    RedisBroker(with_options(url, sentinel_password="outer", sentinel_user="default")).close()
    for more in ({}, {"sentinel_password": "wrong-one"}):
        with pytest.raises(AccessDenied, match="sentinel_password") as caught:
            RedisBroker(with_options(url, **more))
        assert "wrong-one" not in str(caught.value)


def test_tls_to_servers_and_sentinels(services: Services) -> None:
    server = services.shared("tls")
    place, _, options = server.url.removeprefix("rediss://localhost:").partition("/0?ssl_ca_certs=")
    folder = options.removesuffix("cert.pem")
    files = {"tls_cert_file": options, "tls_key_file": f"{folder}key.pem", "tls_ca_cert_file": options}
    lines = {"sentinel resolve-hostnames": "yes", "sentinel announce-hostnames": "yes"}
    lines["sentinel monitor mymaster"] = f"localhost {place} 1"
    settings = {**lines, **files, "tls_auth_clients": "no", "tls_replication": "yes"}
    port = free_port()
    services.redis(sentinel=True, tls_port=port, **settings)
    url = f"redis+sentinel://localhost:{port}/0?master=mymaster&ssl_ca_certs={options}"
    broker = RedisBroker(with_options(url, sentinel_ssl="yes", prefix=services.word()))
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    broker.close()
    with pytest.raises(BrokerUnavailable):  # speaks plainly to a port that wants TLS
        RedisBroker(url)


def test_the_service_is_not_known(services: Services) -> None:
    server = services.redis(sentinel=True)
    with pytest.raises(BrokerUnavailable, match="mymaster"):
        RedisBroker(f"redis+sentinel://127.0.0.1:{server.port}/0?master=mymaster")


def test_redis_py_is_not_needed(services: Services) -> None:
    master = services.redis()
    url = f"redis+sentinel://127.0.0.1:{sentinel(services, master).port}/0?master=mymaster"
    code = "import sys; sys.modules['redis'] = None; import qnb.registry as r; r.open_broker(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, url], check=True)


@pytest.mark.parametrize("priority", [0, 3])
def test_publishing_waits_for_replicas(services: Services, priority: int) -> None:
    """What counts as published survives the master; without enough replicas nothing does."""
    master = services.redis()
    replica = services.redis(replicaof=f"127.0.0.1 {master.port}")
    until(lambda: "master_link_status:up" in replica.tell("INFO", "replication"))
    broker = RedisBroker(with_options(master.url, replicas=1))
    inbox = broker.bus().join("me")
    broker.publish_many([Envelope("q", b"x", priority=priority)] * 3)
    assert broker.publish_and_receive([Envelope("q", b"x", priority=priority)], inbox, 10, 0.0) == []
    assert replica.tell("XLEN", f"{broker._base}q{priority}:q") == 4
    replica.kill()
    sent = [Envelope("q", b"y", priority=priority)]
    with pytest.raises(PublishFailed, match="replicas") as caught:
        broker.publish_many(sent)
    assert caught.value.failed == sent
    inbox.close()
    broker.close()
