"""A Redis Cluster on this machine: masters, and replicas if asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.servers.redis import RedisServer, tell

SLOTS = 16384
START_SECONDS = 30.0


class RedisCluster:
    """Nodes that know each other. kill() is kill -9 of all; start() brings them back on the same ports and folders."""

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = nodes
        self.version = f"{nodes[0].version} as a cluster"
        self.url = f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in nodes[:3])}"

    def form(self, masters: int) -> None:
        """Make a cluster of the nodes: the first are the masters, the others their replicas."""
        for at, node in enumerate(self.nodes):
            tell(node.port, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            if at < masters:
                first, last = SLOTS * at // masters, SLOTS * (at + 1) // masters - 1
                tell(node.port, "CLUSTER", "ADDSLOTSRANGE", first, last)
            if at:
                tell(self.nodes[0].port, "CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        self.wait()
        for at, node in enumerate(self.nodes[masters:]):
            master = tell(self.nodes[at % masters].port, "CLUSTER", "MYID")
            until(lambda n=node, m=master: tell(n.port, "CLUSTER", "REPLICATE", m) == "OK")
        for node in self.nodes[masters:]:
            until(lambda n=node: "master_link_status:up" in tell(n.port, "INFO", "replication"))
        replicas = len(self.nodes) - masters
        for node in self.nodes:  # gossip: who does not know of a replica sends nobody to it
            until(lambda n=node: tell(n.port, "CLUSTER", "NODES").count("slave ") >= replicas)

    def wait(self) -> None:
        """Until every node sees the whole cluster."""
        for node in self.nodes:
            until(lambda n=node: self._whole(n.port))

    def _whole(self, port: int) -> bool:
        said = tell(port, "CLUSTER", "INFO")
        return "cluster_state:ok" in said and f"cluster_known_nodes:{len(self.nodes)}\r" in said

    def owner(self, slot: int) -> RedisServer:
        """The master of a slot, as a living node says."""
        port = next(node.port for node in self.nodes if node.running)
        for first, last, master, *_ in tell(port, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if master[1] in (node.port, node.tls_port))
        raise AssertionError(f"slot {slot} is served by none")

    def begin_move(self, slot: int, to: RedisServer) -> None:
        """From now on the owner sends away who asks for a key that it has not."""
        old = self.owner(slot)
        assert tell(to.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", tell(old.port, "CLUSTER", "MYID")) == "OK"
        assert tell(old.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", tell(to.port, "CLUSTER", "MYID")) == "OK"

    def move_keys(self, slot: int, to: RedisServer, keys: Sequence[str]) -> None:
        """Some of them, in one step."""
        assert tell(self.owner(slot).port, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys) == "OK"

    def end_move(self, slot: int, to: RedisServer) -> None:
        """Move the keys that are left, and say so, as redis-cli --cluster reshard does."""
        old = self.owner(slot)
        while keys := tell(old.port, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            self.move_keys(slot, to, keys)
        name = tell(to.port, "CLUSTER", "MYID")
        for node in (to, old, *self.nodes):
            if node.running and tell(node.port, "ROLE")[0] == "master":
                assert tell(node.port, "CLUSTER", "SETSLOT", slot, "NODE", name) == "OK"

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def restart(self) -> None:
        self.kill()
        self.start()
        self.wait()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def until(condition: Any) -> None:
    """Wait for what no event tells of."""
    end = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < end, "the cluster does not come together"
        time.sleep(0.02)
