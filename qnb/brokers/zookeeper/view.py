"""What a consumer knows of a queue: the shards in which there may be messages, kept up to date by watches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from kazoo.exceptions import NodeExistsError, NoNodeError

from qnb.brokers.base import DEFAULT_LEASE
from qnb.brokers.zookeeper.batch import children, data_of, delete, failure, stat_of
from qnb.brokers.zookeeper.link import Link
from qnb.brokers.zookeeper.names import Content, ShardName, message_name
from qnb.brokers.zookeeper.queue import Queues
from qnb.message import UNREADABLE

# A consumer with nothing to do looks through everything this often: nothing depends on it but what others left behind.
LOOK_SECONDS = 5.0
# Of its time, what a consumer spends at most on lists that are long.
_LIST_SHARE = 0.1
_lease = msgspec.msgpack.Decoder(float).decode


class Shard:
    """A shard as this consumer knows it. `free` is None until its children are asked for."""

    __slots__ = ("delayed", "free", "name", "packs", "path")

    def __init__(self, path: str, name: ShardName, delayed: bool) -> None:
        self.path, self.name, self.delayed = path, name, delayed
        self.free: list[str] | None = None
        self.packs: dict[int, dict[int, bytes] | None] = {}


def key_of(shard: Shard) -> tuple[int, float, str]:
    """Smallest first: the order in which messages are taken."""
    return -shard.name.priority, shard.name.due, shard.name.text


class View:
    """One queue, seen by one consumer. Its watches are called by kazoo's thread, and only note what to look at."""

    def __init__(self, queues: Queues, queue: str, consumer: str, changed: Callable[[], None]) -> None:
        self.queue = queue
        self.lease = DEFAULT_LEASE
        self._queues, self._link, self._consumer, self._changed = queues, queues.link, consumer, changed
        self._shards: dict[str, Shard] = {}
        self._order: deque[Shard] = deque()  # those that may be taken from
        self._waiting: deque[Shard] = deque()  # those that are not due
        self._foreign: set[str] = set()
        # What happened, and up to where it was looked at. Numbers, so that a look that fails is made again.
        self._events = {"bell": 1, "back": 1, "delayed": 1}
        self._seen = {"bell": 0, "back": 0, "delayed": 0}
        self._all_at = 0.0
        self._list_at = 0.0
        self.rank, self.crowd = 0, 1  # which of how many consumers of this queue it is

    @property
    def me(self) -> str:
        """The node that says that this consumer takes from this queue."""
        return self._queues.path(self.queue, "consumers", self._consumer)

    # ------------------------------------------------------------ watches

    def _on_bell(self, event: Any) -> None:
        self._happened("bell")

    def _on_back(self, event: Any) -> None:
        self._happened("back")

    def _on_delayed(self, event: Any) -> None:
        self._happened("delayed")

    def _happened(self, what: str) -> None:
        self._events[what] += 1
        self._changed()

    def forget(self) -> None:
        """Look at everything anew: the connection was lost, and watches with it."""
        for what in self._events:
            self._events[what] += 1

    # ------------------------------------------------------------ looking

    def refresh(self) -> None:
        """Ask which shards there are: others empty and remove them, which rings no bell. Raises Lost."""
        self._events["bell"] += 1
        self.look()

    @property
    def patience(self) -> float:
        """Seconds until something has to be done without being told."""
        now = time.monotonic()
        if self._events != self._seen:
            return max(0.0, self._list_at - now)
        due = self._waiting[0].name.due - self._queues.now() if self._waiting else LOOK_SECONDS
        return max(0.0, min(due, self._all_at + LOOK_SECONDS - now))

    def look(self) -> None:
        """Learn which shards there are, if that may have changed. Raises Lost."""
        now = time.monotonic()
        if now >= self._all_at + LOOK_SECONDS:
            self.forget()
            self._all_at = now
        elif self._events == self._seen or now < self._list_at:
            return
        events = dict(self._events)
        back, bell = (events[what] != self._seen[what] for what in ("back", "bell"))
        delayed = events["delayed"] != self._seen["delayed"]
        if back:
            self._look_back()
        for branch, wanted in (("ready", back or bell), ("delayed", back or delayed)):
            if wanted:
                self._list(branch, new=not back)
        self._seen = events
        self._sort()
        spent = time.monotonic() - now
        self._list_at = 0.0 if spent < 0.02 else now + spent / _LIST_SHARE

    def _look_back(self) -> None:
        """Something came back, or a consumer went: which messages are free has to be asked anew."""
        path = self._queues.path
        _, there, data = self._link.attempt(
            [
                stat_of(path(self.queue, "back"), self._on_back),
                children(path(self.queue, "consumers"), self._on_back),
                data_of(path(self.queue)),
            ]
        )
        if isinstance(there, Exception) or isinstance(data, Exception):
            self._queues.make(self.queue)
            self._events["back"] += 1
            return
        if self._consumer not in there:
            found = self._link.attempt([self._link.commit([self._link.create(self.me, ephemeral=True)])])[0]
            failed = failure(found)
            if failed is not None and not isinstance(failed[1], (NodeExistsError, NoNodeError)):
                raise self._link.translate(failed[1], self.me)
        names = sorted({*there, self._consumer})
        self.rank, self.crowd = names.index(self._consumer), len(names)
        try:
            self.lease = _lease(data[0])
        except UNREADABLE:
            self.lease = DEFAULT_LEASE
        for shard in self._shards.values():
            shard.free = None

    def _list(self, branch: str, *, new: bool) -> None:
        top = self._queues.path(self.queue, branch)
        if branch == "ready":
            bell = self._queues.path(self.queue, "bell")
            _, found = self._link.attempt([stat_of(bell, self._on_bell), children(top)])
        else:
            [found] = self._link.attempt([children(top, self._on_delayed)])
        names = set() if isinstance(found, Exception) else set(found)
        for path in [path for path, shard in self._shards.items() if shard.delayed == (branch == "delayed")]:
            if path.rpartition("/")[2] not in names:
                del self._shards[path]
        for name in names:
            path = f"{top}/{name}"
            if path in self._shards or path in self._foreign:
                continue
            parsed = ShardName.parse(name)
            if parsed is None:
                self._adopt(path)
            else:
                shard = self._shards[path] = Shard(path, parsed, branch == "delayed")
                if new and parsed.packs == 1:  # just published: all of it is there, as names can tell
                    shard.free = [message_name(index, 0, 0) for index in range(parsed.count)]

    def _adopt(self, path: str) -> None:
        """What somebody else has put among the shards becomes a message with its data as body."""
        self._foreign.add(path)
        found = self._link.attempt([data_of(path)])[0]
        if isinstance(found, Exception):
            return
        draft = self._queues.draft(self.queue, 0, 0.0, [(found[0], 0)])
        # Refused when another consumer was faster, or when it is no leaf.
        if failure(self._link.attempt([self._link.commit([*draft.operations, delete(path)])])[0]) is None:
            self._foreign.discard(path)

    def _sort(self) -> None:
        shards = sorted(self._shards.values(), key=key_of)
        now = self._queues.now()
        self._order = deque(shard for shard in shards if not shard.delayed or shard.name.due <= now)
        late = [shard for shard in shards if shard.delayed and shard.name.due > now]
        self._waiting = deque(sorted(late, key=lambda shard: shard.name.due))

    def candidates(self) -> Iterator[Shard]:
        """Shards in which a message may be free, the first to be taken first."""
        if self._waiting and self._waiting[0].name.due <= self._queues.now():
            self._sort()
        while self._order and self._order[0].free == []:
            self._order.popleft()
        return (shard for shard in self._order if shard.free != [])

    def gone(self, shard: Shard) -> None:
        """It is no longer there."""
        shard.free = []
        self._shards.pop(shard.path, None)


def list_shards(link: Link, queues: Queues, shards: list[tuple[View, Shard]]) -> None:
    """Ask for what is free in these. Raises Lost."""
    if not shards:
        return
    answers = link.attempt([children(shard.path) for _, shard in shards])
    for (view, shard), found in zip(shards, answers, strict=True):
        if isinstance(found, Exception):
            view.gone(shard)
            continue
        content = Content.parse(found)
        shard.free = content.free
        if not content.messages and not content.locked:
            queues.drop(shard.path, content)
            view.gone(shard)
