"""Consumers of one queue do not reach for the same messages, and leave none."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from qnb.brokers.zookeeper.choice import Chooser, owns
from qnb.brokers.zookeeper.names import PRIORITIES, ShardName, message_name
from qnb.brokers.zookeeper.view import Shard, View


class Seen(View):
    """A view of shards that are said, by the consumer of this rank."""

    def __init__(self, rank: int, crowd: int, counts: list[int]) -> None:
        self.rank, self.crowd, self._waiting = rank, crowd, deque()
        self._order = deque()
        for number, count in enumerate(counts):
            name = ShardName(f"{number:03d}", PRIORITIES - 1, 0.0, number, count, 1)
            shard = Shard(f"/{number}", name, delayed=False)
            shard.free = [message_name(index, 0, 0) for index in range(count)]
            self._order.append(shard)


def take(view: Seen, chooser: Chooser, room: int) -> list[str]:
    """The paths of what it would claim next; what it asks is answered by what is free."""
    for _ in range(1000):
        choice = chooser.choose([view], room)
        for _, shard in choice.unlisted:
            shard.free = [message_name(index, 0, 0) for index in range(shard.name.count)]
        if choice.claims:
            return [claim.path for claim in choice.claims]
        if not (choice.unlisted or choice.refresh or choice.wait):
            return []
    raise AssertionError("it never comes to a choice")


COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=20)


@given(COUNTS, st.integers(1, 100))
def test_one_alone_takes_in_order(counts: list[int], room: int) -> None:
    expected = [f"/{shard}/{message_name(index, 0, 0)}" for shard, count in enumerate(counts) for index in range(count)]
    assert take(Seen(0, 1, counts), Chooser(), room) == expected[:room]


@given(COUNTS, st.integers(1, 20), st.integers(2, 6))
def test_several_take_different_ones_first(counts: list[int], room: int, crowd: int) -> None:
    taken: list[str] = []
    for rank in range(crowd):
        view = Seen(rank, crowd, counts)
        choice = Chooser().choose([view], room)
        assert all(owns(view, claim.shard, claim.index) for claim in choice.claims)
        assert len(choice.claims) <= room
        taken += [claim.path for claim in choice.claims]
    assert len(set(taken)) == len(taken)
    assert taken, "somebody takes something"


@settings(deadline=None)
@given(COUNTS, st.integers(1, 20), st.integers(2, 4))
def test_one_whose_companions_are_busy_takes_all(counts: list[int], room: int, crowd: int) -> None:
    view, chooser = Seen(0, crowd, counts), Chooser()
    chooser._polite = False  # the wait is the same each time
    left = sum(counts)
    gone: set[str] = set()
    while left:
        choice = chooser.choose([view], room)
        for _, shard in choice.unlisted:
            names = [message_name(index, 0, 0) for index in range(shard.name.count)]
            shard.free = [name for name in names if f"{shard.path}/{name}" not in gone]
        if choice.refresh or choice.unlisted:
            continue
        assert choice.claims
        for claim in choice.claims:
            assert claim.shard.free is not None
            claim.shard.free.remove(claim.node)
            assert claim.path not in gone
            gone.add(claim.path)
        left -= len(choice.claims)
    assert take(view, chooser, room) == []
