"""The leases of a consumer, without a server."""

from __future__ import annotations

import pytest

from qnb.brokers.base import Delivery
from qnb.brokers.pubsub.leases import Held, Leases
from qnb.brokers.pubsub.pulls import Source

SOURCE = Source("q", 0, "qnb+q", 10)


def deliveries(count: int) -> list[Delivery]:
    return [Delivery("q", b"%d" % number, 1, Held(SOURCE, str(number))) for number in range(count)]


def test_a_lease_ends_once() -> None:
    leases = Leases()
    got = deliveries(3)
    assert leases.give(got, 100.0, 5.0) == 105.0
    assert leases.take(got[:1], 104.0) == got[:1]
    assert leases.due(104.9) == ([], [], 105.0)
    lapsed, _, _ = leases.due(105.0)
    assert lapsed == [each.token for each in got[1:]]
    assert leases.unsettled == 0
    assert leases.take(got, 105.0) == []
    assert leases.take_all() == []


def test_what_is_over_is_not_settled_though_nobody_noticed_yet() -> None:
    leases = Leases()
    got = deliveries(1)
    leases.give(got, 100.0, 5.0)
    assert leases.take(got, 105.0) == []
    assert leases.unsettled == 1
    assert leases.change(got, 105.0, 10.0)[0] == []
    assert len(leases.due(105.0)[0]) == 1


@pytest.mark.parametrize("seconds,end", [(20.0, 121.0), (0.5, 101.5)])
def test_a_lease_is_changed(seconds: float, end: float) -> None:
    leases = Leases()
    got = deliveries(2)
    leases.give(got, 100.0, 5.0)
    held, at = leases.change(got[:1], 101.0, seconds)
    assert (held, at) == ([got[0].token], end)
    ends = {each.ack_id: now for now in (101.5, 105.0, 121.0) for each in leases.due(now)[0]}
    assert ends == {"0": end, "1": 105.0}


def test_a_lease_beyond_the_servers_longest_is_renewed() -> None:
    leases = Leases()
    got = deliveries(1)
    assert leases.give(got, 0.0, 1000.0) == 540.0
    lapsed, renewed, at = leases.due(540.0)
    assert (lapsed, renewed, at) == ([], [got[0].token], 1000.0)
    assert leases.due(1000.0)[0] == [got[0].token]


def test_settled_ones_do_not_pile_up() -> None:
    leases = Leases()
    for _ in range(100):
        got = deliveries(1000)
        leases.give(got, 0.0, 500.0)
        leases.take(got, 1.0)
    assert leases._noted <= 11_000
    assert leases.take_all() == []
