"""Redis Cluster: the node of the place's slot is found, and followed when it dies or the slot moves."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from qnb.backends.redis import RedisBackend
from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.client import Client
from qnb.brokers.redis.link import CONNECT_SECONDS, ServerError, slot_of, target_of
from qnb.brokers.redis.route import cluster_of
from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigurationError
from qnb.message import Envelope, Stored
from qnb.settings import parse_url
from tests.servers.base import free_port
from tests.servers.redis import RedisServer
from tests.servers.redis_cluster import RedisCluster, until
from tests.services import Services, with_options
from tests.unit.redis.traffic import Traffic


@pytest.fixture
def cluster(services: Services) -> RedisCluster:
    return services.shared_cluster()


def test_slots(cluster: RedisCluster, services: Services) -> None:
    for tag in ("qnb", "ünï", services.word()):
        assert slot_of(tag) == cluster.nodes[0].tell("CLUSTER", "KEYSLOT", f"{{{tag}}}:queues")


def test_places_are_spread(cluster: RedisCluster, services: Services) -> None:
    """Each on the node of its slot, and all of it in that slot."""
    used = set()
    for _ in range(20):
        prefix = services.word()
        broker = RedisBroker(with_options(cluster.url, prefix=prefix))
        broker.publish_many([Envelope("q", b"x"), Envelope("q", b"x", priority=3), Envelope("r", b"x", delay=60)])
        owner = cluster.owner(slot_of(prefix))
        used.add(owner.port)
        assert owner.tell("CLUSTER", "COUNTKEYSINSLOT", slot_of(prefix)) == len(owner.tell("KEYS", f"{{{prefix}}}*"))
        broker.close()
    assert len(used) > 1


def test_one_living_seed_is_enough(cluster: RedisCluster, services: Services) -> None:
    for node in cluster.nodes:
        url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}/?prefix={services.word()}"
        RedisBroker(url).close()
    with pytest.raises(BrokerUnavailable, match="cluster slots"):
        RedisBroker(f"redis+cluster://127.0.0.1:{free_port()}")


def test_failover(services: Services) -> None:
    """The place's master is killed: its replica takes over, and the old one comes back as a replica."""
    cluster = services.cluster(replicas=3)
    slot = slot_of("qnb")
    with Traffic(cluster.url) as traffic:
        traffic.flow()
        old = cluster.owner(slot)
        with traffic.still:  # what the replica has not yet is lost with a master: that is Redis, and not what is tested
            role = old.tell("ROLE")
            until(lambda: int(old.tell("ROLE")[2][0][2]) >= role[1])
            old.kill()
        traffic.flow()
        assert traffic.broker._client.one("CONFIG", "GET", "port")[1] == b"%d" % cluster.owner(slot).port
        assert cluster.owner(slot).port != old.port
        old.start()
        until(lambda: old.tell("ROLE")[0] == "slave")
        until(lambda: "master_link_status:up" in old.tell("INFO", "replication"))
        cluster.wait()
        with traffic.still:
            switch_back(old)  # both sides agree: nothing is lost, and clients are sent on
        traffic.flow()
        traffic.finish()
        assert cluster.owner(slot).port == old.port


def switch_back(node: RedisServer) -> None:
    """Asked again where it came to nothing: the servers give it five seconds, which a busy machine may not have."""
    asked = 0.0

    def is_master() -> bool:
        nonlocal asked
        if time.monotonic() - asked > 6:
            node.tell("CLUSTER", "FAILOVER")
            asked = time.monotonic()
        return bool(node.tell("ROLE")[0] == "master")

    until(is_master)


def test_a_slot_moves_under_way(cluster: RedisCluster, services: Services) -> None:
    prefix = services.word()
    slot = slot_of(prefix)
    old = cluster.owner(slot)
    new = next(node for node in cluster.nodes if node.port != old.port)
    with Traffic(with_options(cluster.url, prefix=prefix)) as traffic:
        traffic.flow()
        cluster.begin_move(slot, new)
        keys = old.tell("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        cluster.move_keys(slot, new, keys[::2])
        broker = RedisBroker(with_options(cluster.url, prefix=prefix, patience=0.3))
        with pytest.raises(BrokerError):  # it would have to be made, and at which end is not known
            broker.publish_many([Envelope("new", b"x", priority=1)])
        assert len(new.tell("KEYS", f"{{{prefix}}}*")) == len(keys[::2])
        broker.close()
        cluster.end_move(slot, new)
        traffic.flow()
        assert traffic.broker._client.one("CONFIG", "GET", "port")[1] == b"%d" % new.port
        traffic.finish()
        assert cluster.owner(slot).port == new.port
        assert old.tell("KEYS", f"{{{prefix}}}*") == []


def test_a_restarted_cluster_is_waited_for(services: Services) -> None:
    cluster = services.cluster(appendonly=True, appendfsync="always")
    with Traffic(cluster.url) as traffic:
        traffic.flow()
        with traffic.still:
            cluster.kill()
            for node in cluster.nodes:
                node.start()
        traffic.flow()
        traffic.finish()


def test_partners_share_a_slot_not_only_a_server(cluster: RedisCluster, services: Services) -> None:
    prefix = services.word()
    broker = RedisBroker(with_options(cluster.url, prefix=prefix))
    node = cluster.owner(slot_of(prefix))
    neighbour = next(
        word for word in iter(services.word, "") if word != prefix and cluster.owner(slot_of(word)).port == node.port
    )
    for place, partners in ((prefix, True), (neighbour, False)):
        backend = RedisBackend(with_options(cluster.url, prefix=place))
        assert (broker.partner(backend) is not None) == partners
        backend.store_many([Stored("run", 0, 1, b"x")])
        assert backend.fetch_many("run") == [Stored("run", 0, 1, b"x")]
        backend.close()
    broker.close()


def test_login_and_rights(services: Services) -> None:
    cluster = services.cluster()
    for node in cluster.nodes:
        assert node.tell("CONFIG", "SET", "requirepass", "hidden") == "OK"
    broker = RedisBroker(cluster.url.replace("//", "//:hidden@"))
    broker.publish_many([Envelope("q", b"x")])
    assert "hidden" not in f"{broker.url} {broker._client.target!r}"
    broker.close()
    for login in ("", ":wrong@"):
        with pytest.raises(AccessDenied):
            RedisBroker(cluster.url.replace("//", f"//{login}"))


def test_tls(services: Services) -> None:
    """To every node, by the name that it announces: the certificate is made out to that."""
    certificate = services.shared("tls").url.partition("ssl_ca_certs=")[2]
    files: dict[str, Any] = {"tls_cert_file": certificate, "tls_key_file": certificate.replace("cert.pem", "key.pem")}
    files |= {"tls_ca_cert_file": certificate, "tls_auth_clients": "no", "tls_cluster": True}
    names: dict[str, Any] = {"cluster_announce_hostname": "localhost", "cluster_preferred_endpoint_type": "hostname"}
    cluster = services.cluster(tls_ports=True, **files, **names)
    url = f"rediss+cluster://localhost:{cluster.nodes[0].tls_port}"
    prefix = next(w for w in iter(services.word, "") if cluster.owner(slot_of(w)) is not cluster.nodes[0])
    broker = RedisBroker(with_options(url, ssl_ca_certs=certificate, prefix=prefix))
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    broker.close()
    with pytest.raises(BrokerUnavailable, match="certificate"):
        RedisBroker(url)


def test_the_scheme_has_to_fit(cluster: RedisCluster, services: Services) -> None:
    alone = services.shared("redis").port
    with pytest.raises(ConfigurationError, match="redis://host:port/0"):
        RedisBroker(f"redis+cluster://127.0.0.1:{alone}")
    prefix = services.word()
    other = next(node for node in cluster.nodes if node is not cluster.owner(slot_of(prefix)))
    broker = RedisBroker(f"redis://127.0.0.1:{other.port}/0?prefix={prefix}")
    with pytest.raises(BrokerError, match=r"redis\+cluster:"):
        broker.publish_many([Envelope("q", b"x")])
    broker.close()


def test_threads_that_find_out_together(cluster: RedisCluster, services: Services) -> None:
    """All believe in a node that is none; each ends at the right one."""
    prefix = services.word()
    broker = RedisBroker(with_options(cluster.url, prefix=prefix))
    client: Client = broker._client
    wrong = next(node for node in cluster.nodes if node is not cluster.owner(slot_of(prefix)))
    client._drop_idle()
    cluster_of(client.target).owner = ("127.0.0.1", wrong.port)
    barrier = threading.Barrier(8)

    def publish() -> None:
        barrier.wait()
        broker.publish_many([Envelope("q", b"x")])

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broker.depth("q") == 8
    assert cluster_of(client.target).owner == ("127.0.0.1", cluster.owner(slot_of(prefix)).port)
    broker.close()


@pytest.mark.parametrize(
    "said, owner",
    [
        ("MOVED 5 10.0.0.7:7001", ("10.0.0.7", 7001)),
        ("MOVED 5 node-7.example:7001", ("node-7.example", 7001)),
        ("MOVED 5 fe80::7:7001", ("fe80::7", 7001)),
        ("MOVED 5 :7001", ("before", 1)),
        ("MOVED 5 ?:7001", None),
        ("CLUSTERDOWN The cluster is down", None),
        ("READONLY You can't write against a read only replica.", None),
    ],
)
def test_what_a_node_says(said: str, owner: tuple[str, int] | None) -> None:
    cluster = cluster_of(target_of(parse_url("redis+cluster://before:1/?prefix=unheard")))
    cluster.owner = ("before", 1)
    cluster.learn(ServerError(said))
    assert cluster.owner == (owner if owner != ("before", 1) else ("before", 7001))


def test_nodes_without_a_name_are_where_they_were_asked() -> None:
    cluster = cluster_of(target_of(parse_url("redis+cluster://h:1/?prefix=unheard")))
    slot = slot_of("unheard")
    for host in (None, b"", b"?"):
        ranges = [[0, slot - 1, [b"other", 7, b"id"]], [slot, slot, [host, 9, b"id"], [b"replica", 8, b"id"]]]
        assert cluster._read(ranges, ("asked", 1)) == ("asked", 9)
        assert cluster._nodes == (("other", 7), ("asked", 9), ("replica", 8))
    assert cluster._read([[slot + 1, 16383, [b"other", 7, b"id"]]], ("asked", 1)) is None


def test_a_node_that_hangs_does_not_hold_the_others(
    cluster: RedisCluster, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnb.brokers.redis.route.random.shuffle", lambda nodes: None)  # the silent one is asked first
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"redis+cluster://127.0.0.1:{port},127.0.0.1:{cluster.nodes[0].port}/?prefix={services.word()}"
        begun = time.monotonic()
        RedisBroker(url).close()
        assert time.monotonic() - begun < CONNECT_SECONDS, "it may have its share of that, not all"
