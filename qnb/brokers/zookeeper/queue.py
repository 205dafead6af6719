"""How queues lie in ZooKeeper's tree.

    ROOT/queues/QUEUE        its lease
        /ready/SHARD         what waits, in the order of the shards' names
        /delayed/SHARD       what is not due yet
        /dead/0000000001     rejected messages
        /consumers/NAME      ephemeral: who takes from it
        /bell  /back         touched when something was published, or came back

A shard is what one transaction published: up to 250 messages of one priority. Its bodies are packed into its own data
and into `pN` below it, so that they are read in few requests. For each message that is not settled it has a small
node `mINDEX-PACK-BASE`; for each that is leased, an ephemeral `lINDEX` too, which goes with its holder's session.
Each claim bumps the version of the message's node: BASE + version is the number of deliveries, and whoever settles
names the version of his claim, so that a late one changes nothing.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from kazoo.exceptions import NodeExistsError, NoNodeError

from qnb.brokers.base import DEFAULT_LEASE, DeadLetter, QueueSpec
from qnb.brokers.zookeeper.batch import Item, children, commit_items, data_of, delete, failure, put
from qnb.brokers.zookeeper.link import Link, Operation
from qnb.brokers.zookeeper.names import (
    PACK_BYTES,
    PRIORITIES,
    Content,
    ShardName,
    lock_name,
    message_name,
    message_parts,
    name_of,
    node_name,
    packed,
)
from qnb.errors import BrokerError, BrokerUnavailable, PublishFailed
from qnb.message import UNREADABLE, Envelope

SHARD_MESSAGES = 200
MESSAGE_SPARE = 65_536  # of a packet: what goes along with the largest message
REASON_BYTES = 4_096
BRANCHES = ("ready", "delayed", "dead", "consumers", "bell", "back")
# Below this, two clocks are taken to agree: it is finer than asking a busy server for the time.
SKEW_SECONDS = 0.25

_encode = msgspec.msgpack.Encoder().encode
_letter = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


@dataclass(slots=True)
class Draft:
    """A shard to be made: its operations, and whose messages they are."""

    path: str
    operations: list[Operation]
    envelopes: list[Envelope] = field(default_factory=list)
    error: BrokerError | None = None


class Queues:
    """The queues below one root."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.root = f"{link.target.root}/queues"
        self._publisher = secrets.token_hex(3)
        self._numbers = itertools.count()
        self._newest = 0.0
        self._skew = 0.0

    def path(self, queue: str, *more: str) -> str:
        return "/".join((self.root, node_name(queue), *more))

    # ------------------------------------------------------------ the clock

    def set_clock(self) -> None:
        """Learn how far this machine's clock is from the server's: what is due is due by the server's."""
        skews = []
        for _ in range(3):
            before = time.time()
            stat = self.link.call(lambda client: client.set_async(self.link.target.root, b""))
            if isinstance(stat, Exception):
                return
            after = time.time()
            skews.append((after - before, stat.mtime / 1000 - (before + after) / 2))
        _, skew = min(skews)
        self._skew = skew if abs(skew) > SKEW_SECONDS else 0.0

    def now(self) -> float:
        """The server's time."""
        return time.time() + self._skew

    # ------------------------------------------------------------ making and removing

    def make_root(self) -> None:
        """Make what stands above the queues."""
        for path in (self.root, f"{self.link.target.root}/peers", f"{self.link.target.root}/mail"):
            self.link.call(lambda client, path=path: client.ensure_path_async(path, self.link.target.acl))  # type: ignore[misc]

    def make(self, queue: str, lease: float = DEFAULT_LEASE) -> bool:
        """Make a queue; whether it was not there."""
        top = self.path(queue)
        operations = [self.link.create(top, _encode(lease))]
        operations += [self.link.create(f"{top}/{branch}") for branch in BRANCHES]
        failed = failure(self.link.call(self.link.commit(operations)))
        if failed is not None and isinstance(failed[1], NoNodeError):  # the root was removed under way
            self.make_root()
            failed = failure(self.link.call(self.link.commit(operations)))
        if failed is not None and not isinstance(failed[1], NodeExistsError):
            raise self.link.translate(failed[1], top)
        return failed is None

    def declare(self, spec: QueueSpec) -> None:
        if not self.make(spec.name, spec.lease):
            self.link.call(lambda client: client.set_async(self.path(spec.name), _encode(spec.lease)))

    def names(self) -> list[str]:
        found = self.link.call(lambda client: client.get_children_async(self.root))
        return [] if isinstance(found, Exception) else sorted(map(name_of, found))

    def remove(self, queue: str) -> None:
        """Everything below, the deepest first; again when somebody added to it meanwhile."""
        top = self.path(queue)
        for _ in range(10):
            paths = self._below(top)
            items = [Item([delete(path)]) for path in reversed(paths)]
            commit_items(self.link, items)
            if items[-1].error is None or isinstance(items[-1].error, NoNodeError):
                return
        raise BrokerUnavailable(f"queue {queue} is filled as fast as it is removed: stop its publishers and consumers")

    def _below(self, top: str) -> list[str]:
        paths, level = [top], [top]
        while level:
            below = self.link.call_many([children(path) for path in level])
            level = [
                f"{path}/{child}"
                for path, found in zip(level, below, strict=True)
                if not isinstance(found, Exception)
                for child in sorted(found, key=lambda child: child[0] == "l")  # a lock goes before its message
            ]
            paths += level
        return paths

    # ------------------------------------------------------------ publishing

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Returns when the server has all; raises PublishFailed with those that it has not."""
        groups: dict[tuple[str, int, float], list[Envelope]] = {}
        for envelope in envelopes:
            groups.setdefault((envelope.queue, envelope.priority, max(0.0, envelope.delay)), []).append(envelope)
        drafts = [draft for key, group in groups.items() for draft in self._drafts(*key, group)]
        try:
            self._send(drafts)
        except BrokerUnavailable as error:
            if all(draft.error is not None for draft in drafts):
                raise
            raise self._failed(drafts, envelopes) from error
        errors = [draft.error for draft in drafts if draft.error is not None]
        if errors and len(errors) == len(drafts):
            raise errors[0]
        if errors:
            raise self._failed(drafts, envelopes) from errors[0]

    @staticmethod
    def _failed(drafts: Sequence[Draft], envelopes: Sequence[Envelope]) -> PublishFailed:
        lost = {id(envelope) for draft in drafts if draft.error is not None for envelope in draft.envelopes}
        failed = [envelope for envelope in envelopes if id(envelope) in lost]
        reason = next(draft.error for draft in drafts if draft.error is not None)
        return PublishFailed(f"{len(failed)} of {len(envelopes)} messages were not confirmed: {reason}", failed)

    def _drafts(self, queue: str, priority: int, delay: float, group: Sequence[Envelope]) -> list[Draft]:
        drafts: list[Draft] = []
        part: list[Envelope] = []
        size = 0
        room = self.link.target.packet - 2 * PACK_BYTES
        path_bytes = len(self.path(queue).encode()) + 160  # of each message: its node's path, header and ACL
        for envelope in [*group, None]:
            more = 0 if envelope is None else len(envelope.body) + path_bytes
            if part and (envelope is None or len(part) == SHARD_MESSAGES or size + more > room):
                draft = self.draft(queue, priority, delay, [(one.body, 0) for one in part])
                draft.envelopes = part
                drafts.append(draft)
                part, size = [], 0
            if envelope is not None:
                part.append(envelope)
                size += more
        return drafts

    def draft(self, queue: str, priority: int, delay: float, messages: Sequence[tuple[bytes, int]]) -> Draft:
        """A shard with these bodies, each with its deliveries so far."""
        packs, places = packed([body for body, _ in messages])
        self._newest = now = max(self.now(), self._newest)  # a clock that is set back changes no order
        due = round((now + delay) * 1000)
        name = f"{PRIORITIES - 1 - priority}{due:013d}{self._publisher}{next(self._numbers) & 0xFFFFFFFF:08x}"
        branch = "delayed" if delay > 0 else "ready"
        path = self.path(queue, branch, f"{name}.{len(messages)}.{len(packs)}")
        create = self.link.create
        operations = [create(path, _encode(packs[0]))]
        operations += [create(f"{path}/p{number}", _encode(pack)) for number, pack in enumerate(packs) if number]
        operations += [
            create(f"{path}/{message_name(index, pack, base)}")
            for index, (pack, (_, base)) in enumerate(zip(places, messages, strict=True))
        ]
        if not delay:
            operations.append(put(self.path(queue, "bell"), b""))
        return Draft(path, operations)

    def _send(self, drafts: Sequence[Draft]) -> None:
        """Each draft a transaction, several on their way at once."""
        for start in range(0, len(drafts), 8):
            window = drafts[start : start + 8]
            for draft in window:
                draft.error = BrokerUnavailable("the connection was lost before")
            try:
                results = self.link.call_many([self.link.commit(draft.operations) for draft in window])
            except BrokerUnavailable as error:
                for draft in drafts[start:]:
                    draft.error = error
                raise
            for draft, result in zip(window, results, strict=True):
                draft.error = self._settle_draft(draft, failure(result))

    def _settle_draft(self, draft: Draft, failed: tuple[int, Exception] | None) -> BrokerError | None:
        for _ in range(3):
            if failed is None or (failed[0] == 0 and isinstance(failed[1], NodeExistsError)):
                return None  # there: an answer that got lost was a yes
            if not isinstance(failed[1], NoNodeError):
                break
            self.make(name_of(draft.path[len(self.root) + 1 :].partition("/")[0]))
            failed = failure(self.link.call(self.link.commit(draft.operations)))
        return None if failed is None else self.link.translate(failed[1], draft.path)

    # ------------------------------------------------------------ looking

    def shards(self, queue: str) -> list[tuple[str, Content]]:
        """The path and content of each shard of a queue, delayed ones too."""
        paths = []
        for branch, found in zip(
            ("ready", "delayed"),
            self.link.call_many([children(self.path(queue, branch)) for branch in ("ready", "delayed")]),
            strict=True,
        ):
            if not isinstance(found, Exception):
                paths += [self.path(queue, branch, name) for name in found if ShardName.parse(name)]
        contents = self.link.call_many([children(path) for path in paths]) if paths else []
        return [
            (path, Content.parse(found))
            for path, found in zip(paths, contents, strict=True)
            if not isinstance(found, Exception)
        ]

    def depth(self, queue: str) -> int:
        return sum(len(content.messages.keys() - content.locked) for _, content in self.shards(queue))

    def purge(self, queue: str) -> int:
        """Drop what nobody holds: shards as a whole where no message is held, and none is taken meanwhile."""
        shards = self.shards(queue)
        whole = [(path, content) for path, content in shards if not content.locked]
        items = [Item([delete(node) for node in (*content.below(path), path)]) for path, content in whole]
        commit_items(self.link, items)
        done = {path: len(content.messages) for (path, content), item in zip(whole, items, strict=True) if item.results}
        rest = [(path, content) for path, content in shards if path not in done]
        return sum(done.values()) + self._purge_single(rest)

    def _purge_single(self, shards: Sequence[tuple[str, Content]]) -> int:
        """A lock is made and removed with each message, which fails where there is one."""
        items, paths = [], []
        for path, content in shards:
            for node in content.free:
                lock = f"{path}/{lock_name(message_parts(node)[0])}"
                items.append(Item([self.link.create(lock), delete(lock), delete(f"{path}/{node}")]))
                paths.append(path)
        commit_items(self.link, items)
        dropped = [path for path, item in zip(paths, items, strict=True) if item.results is not None]
        self.sweep(set(dropped))
        return len(dropped)

    def sweep(self, paths: Iterable[str]) -> None:
        """Remove those shards of which no message is left; nobody waits for it."""

        def look(path: str) -> None:
            def found(pending: Any) -> None:
                if pending.successful():
                    self.drop(path, Content.parse(pending.get()))

            self.link.client.get_children_async(path).rawlink(found)

        for path in paths:
            if self.link.connected:
                look(path)

    def drop(self, path: str, content: Content) -> None:
        """Remove a shard that is empty. The server refuses when it is not, or no longer there."""
        if not content.messages and not content.locked:
            self.link.post([*(delete(f"{path}/{pack}") for pack in content.packs), delete(path)])

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        found = self.link.call(children(self.path(queue, "dead")))
        if isinstance(found, Exception):
            return []
        newest = sorted(found, reverse=True)[:limit]
        nodes = self.link.call_many([data_of(self.path(queue, "dead", name)) for name in newest]) if newest else []
        letters = []
        for node in nodes:
            if not isinstance(node, Exception):
                reason, body = opened_letter(node[0])
                letters.append(DeadLetter(queue, body, reason))
        return letters

    def trim_dead(self, queue: str) -> None:
        """Remove dead letters over the number that is kept, the oldest first; nobody waits for it."""

        def found(pending: Any) -> None:
            if pending.successful():
                paths = [self.path(queue, "dead", name) for name in sorted(pending.get())]
                over = paths[: max(0, len(paths) - self.link.target.dead_letters)]
                for start in range(0, len(over), SHARD_MESSAGES):
                    self.link.post([delete(path) for path in over[start : start + SHARD_MESSAGES]])

        if self.link.connected:
            self.link.client.get_children_async(self.path(queue, "dead")).rawlink(found)

    def letter(self, queue: str, body: bytes, reason: str) -> Operation:
        """What keeps a rejected message."""
        short = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        return self.link.create(self.path(queue, "dead", "d"), _encode((short, body)), sequence=True)


def opened_letter(data: bytes) -> tuple[str, bytes]:
    """The reason and the message of a dead letter."""
    try:
        return _letter(data)
    except UNREADABLE:
        return "put here by something else than qnb", data
