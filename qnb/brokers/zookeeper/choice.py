"""Which messages a consumer tries to claim: in order when it is alone, each his own first when there are several.

Consumers that all reach for the first message get in each other's way: one has it, and the others have asked in vain.
So every message has a favourite among those who take from its queue. He takes it at once; another one only when there
is none of his own among the oldest, and after a moment in which the favourite, were he idle, would have taken it.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qnb.brokers.zookeeper.claims import Claim
from qnb.brokers.zookeeper.names import message_parts
from qnb.brokers.zookeeper.view import Shard, View, key_of

# Messages that lie together have the same favourite, so that he needs few packs and few requests.
BLOCK = 16
# How long what is another's is left to him.
COURTESY_SECONDS = 0.004
# Among how many of the oldest messages a consumer looks for his own: so many times what all could take.
WINDOW = 8

Place = tuple[View, Shard]


@dataclass(slots=True)
class Choice:
    """Messages to claim; or what to ask before that can be said; or how long to wait with what is there."""

    claims: list[Claim] = field(default_factory=list)
    unlisted: list[Place] = field(default_factory=list)
    refresh: bool = False  # which shards there are
    wait: float | None = None


def in_order(views: Sequence[View]) -> Iterator[Place]:
    """Shards in which something may be free, over all queues."""
    each = [zip(itertools.repeat(view), view.candidates()) for view in views]
    return each[0] if len(each) == 1 else heapq.merge(*each, key=lambda place: key_of(place[1]))


def expected(shard: Shard) -> int:
    """How many messages may be free in it, at most."""
    return shard.name.count if shard.free is None else len(shard.free)


def owns(view: View, shard: Shard, index: int) -> bool:
    """Whether this message is this consumer's own."""
    return (shard.name.number + index // BLOCK) % view.crowd == view.rank


def may_own(view: View, shard: Shard) -> bool:
    """Whether one of its messages is this consumer's own."""
    blocks = -(-shard.name.count // BLOCK)
    return any(owns(view, shard, block * BLOCK) for block in range(min(blocks, view.crowd)))


class Chooser:
    """What one consumer remembers of its choices."""

    def __init__(self) -> None:
        self._polite = True
        self._others_at: float | None = None  # when what is others' may be taken
        self._refreshed = False  # it was just asked which shards there are
        self._fresh = False  # and what is free in them
        self._took_others = False

    def choose(self, views: Sequence[View], room: int) -> Choice:
        places = in_order(views)
        if all(view.crowd <= 1 for view in views):
            return self._first(places, room)
        window = self._window(places, room * WINDOW * max(view.crowd for view in views))
        return self._own(window, room) or self._others(window, room)

    def claimed(self, wanted: int, got: int) -> None:
        """What became of the choice: a collision makes polite."""
        if self._took_others:
            self._polite = got < wanted

    @staticmethod
    def _first(places: Iterator[Place], room: int) -> Choice:
        choice = Choice()
        seen = 0
        for view, shard in places:
            if seen >= room:
                break
            seen += expected(shard)
            if shard.free is None:
                choice.unlisted.append((view, shard))
            else:
                choice.claims += [Claim(view, shard, node) for node in shard.free[: room - len(choice.claims)]]
        return choice

    @staticmethod
    def _window(places: Iterator[Place], size: int) -> list[Place]:
        """The oldest of the highest priority there is."""
        window: list[Place] = []
        for view, shard in places:
            if size <= 0 or (window and shard.name.priority != window[0][1].name.priority):
                break
            window.append((view, shard))
            size -= expected(shard)
        return window

    def _own(self, window: Sequence[Place], room: int) -> Choice | None:
        choice = Choice()
        asked = 0
        for view, shard in window:
            if len(choice.claims) + asked >= room:
                break
            if shard.free is not None:
                choice.claims += [
                    Claim(view, shard, node) for node in shard.free if owns(view, shard, message_parts(node)[0])
                ]
            elif may_own(view, shard):
                choice.unlisted.append((view, shard))
                asked += min(shard.name.count, BLOCK)
        del choice.claims[room:]
        if not choice.claims and not choice.unlisted:
            return None
        self._others_at, self._took_others, self._refreshed = None, False, False
        return choice

    def _others(self, window: Sequence[Place], room: int) -> Choice:
        if not window:
            self._others_at, self._fresh, self._refreshed = None, False, False
            return Choice()
        if not self._refreshed:  # shards that others have emptied stand between this consumer and his own
            self._refreshed = True
            return Choice(refresh=True)
        now = time.monotonic()
        if self._polite:
            if self._others_at is None:
                self._others_at = now + COURTESY_SECONDS
            if now < self._others_at:
                return Choice(wait=self._others_at - now)
        if not self._fresh:
            self._fresh = True
            for _, shard in window:
                shard.free = None
            return Choice(unlisted=list(window))
        self._fresh, self._others_at, self._took_others, self._refreshed = False, None, True, False
        found = [Claim(view, shard, node) for view, shard in window for node in shard.free or ()]
        start = random.randrange(max(1, len(found) - room + 1))
        return Choice(found[start : start + room])
