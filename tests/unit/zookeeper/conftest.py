"""A broker on the shared ZooKeeper, and a bare client beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("kazoo")

from kazoo.client import KazooClient

from qnb.brokers.zookeeper.broker import ZookeeperBroker
from tests.servers.zookeeper import ZookeeperServer
from tests.services import Services, with_options

OpenBroker = Callable[..., ZookeeperBroker]


@pytest.fixture
def server(services: Services) -> ZookeeperServer:
    return services.common(ZookeeperServer)


@pytest.fixture
def open_broker(server: ZookeeperServer, services: Services) -> Iterator[OpenBroker]:
    """Brokers of one place that nobody else uses."""
    prefix = services.word()
    with ExitStack() as stack:

        def make(login: str = "", **options: Any) -> ZookeeperBroker:
            url = server.url.replace("//", f"//{login}@") if login else server.url
            broker = ZookeeperBroker(with_options(url, **{"prefix": prefix, "patience": 30, **options}))
            stack.callback(broker.close)
            return broker

        yield make


@pytest.fixture
def bare(server: ZookeeperServer) -> Iterator[KazooClient]:
    """Somebody else's client."""
    client = KazooClient(f"127.0.0.1:{server.port}")
    client.start()
    yield client
    client.stop()
    client.close()


def expire(broker: ZookeeperBroker, server: ZookeeperServer) -> None:
    """End the broker's session on the server, as if it had been silent for too long."""
    taker = KazooClient(f"127.0.0.1:{server.port}", client_id=broker._link.client.client_id)
    taker.start()
    taker.stop()
    taker.close()
