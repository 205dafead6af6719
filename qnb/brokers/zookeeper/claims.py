"""Claims: a lock and a count for each message, many in a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qnb.brokers.zookeeper.batch import Item, commit_items, data_of, delete, put
from qnb.brokers.zookeeper.link import Link, Operation, Pending
from qnb.brokers.zookeeper.names import lock_name, message_name, message_parts, opened_pack

if TYPE_CHECKING:
    from qnb.brokers.zookeeper.view import Shard, View


class Claim:
    """A message that is to be taken, and once it is, what settles it."""

    def __init__(self, view: View, shard: Shard, node: str) -> None:
        self.view, self.shard = view, shard
        self.index, self.pack, self.base = message_parts(node)
        self.node = node
        self.path = f"{shard.path}/{node}"
        self.lock_path = f"{shard.path}/{lock_name(self.index)}"
        self.version = 0
        self.body = b""

    @property
    def deliveries(self) -> int:
        return self.base + self.version

    @property
    def removal(self) -> list[Operation]:
        """It is done. Fails when someone else has it."""
        return [delete(self.path, self.version), delete(self.lock_path)]

    @property
    def last_removal(self) -> list[Operation]:
        """The same, and its shard with it when it was made for this one message."""
        alone = self.shard.name.count == self.shard.name.packs == 1
        return [*self.removal, delete(self.shard.path)] if alone else self.removal

    def renewal(self, link: Link) -> list[Operation]:
        """It is free again, as if it had not been taken."""
        node = message_name(self.index, self.pack, self.deliveries - 1)
        return [*self.removal, link.create(f"{self.shard.path}/{node}")]


def claim_many(link: Link, name: str, wanted: Sequence[Claim]) -> list[Claim]:
    """Lock them; those that could be had, with their bodies. Raises Lost."""
    packs = _begin_packs(link, wanted)
    owner = name.encode()
    items = [Item([link.create(one.lock_path, owner, ephemeral=True), put(one.path, b"")]) for one in wanted]
    commit_items(link, items, once=True)
    got: list[Claim] = []
    taken: dict[str, tuple[Shard, set[str]]] = {}
    for one, item in zip(wanted, items, strict=True):
        if item.results is None:
            one.shard.free = None  # somebody else was faster: what is free there has to be asked
            continue
        one.version = item.results[1].version
        got.append(one)
        taken.setdefault(one.shard.path, (one.shard, set()))[1].add(one.node)
    for shard, nodes in taken.values():
        if shard.free is not None:
            shard.free = [node for node in shard.free if node not in nodes]
    _finish_packs(link, packs)
    whole = [one for one in got if _give_body(one)]
    for shard, _ in taken.values():
        if not shard.free:
            shard.packs.clear()
    return whole


Packs = list[tuple["Shard", int, Pending]]


def _begin_packs(link: Link, wanted: Sequence[Claim]) -> Packs:
    """Ask for the packs in which their bodies are, as far as they are not here."""
    needed = {(one.shard.path, one.pack): one.shard for one in wanted if one.pack not in one.shard.packs}
    paths = [path if pack == 0 else f"{path}/p{pack}" for path, pack in needed]
    sent = link.begin([data_of(path) for path in paths])
    return [(shard, pack, pending) for ((_, pack), shard), pending in zip(needed.items(), sent, strict=True)]


def _finish_packs(link: Link, packs: Packs) -> None:
    found = link.finish([pending for _, _, pending in packs])
    for (shard, pack, _), answer in zip(packs, found, strict=True):
        if not isinstance(answer, Exception):
            shard.packs[pack] = opened_pack(answer[0]) or {-1: answer[0]}


def _give_body(one: Claim) -> bool:
    """False when the queue was removed in this moment. In a pack that qnb has not written, all of it is the body."""
    shard = one.shard
    bodies = shard.packs.get(one.pack)
    if bodies is None:
        return False
    if one.index in bodies:
        one.body = bodies[one.index]
    else:
        one.body = bodies.get(-1, b"")
    return True
