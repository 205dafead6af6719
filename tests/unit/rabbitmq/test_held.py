"""The ledger of what a consumer holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qnb.brokers.base import Delivery
from qnb.brokers.rabbitmq.held import GONE, HELD, Held, Ledger


def held(tag: int, name: str = "", priority: int = 0) -> Held:
    made = Held("q", priority > 0, name or f"m{tag}", b"", 1, priority)
    made.tag, made.channel = tag, "here"
    return made


def handed_out(ledger: Ledger, count: int, deadline: float = 100.0) -> list[Delivery]:
    return [Delivery(one.queue, one.body, one.deliveries, one) for one in ledger.take(count, deadline)]


@given(st.lists(st.lists(st.integers(1, 12), max_size=6), max_size=6))
def test_acks_settle_exactly_what_was_asked_for(batches: list[list[int]]) -> None:
    ledger = Ledger()
    for tag in range(1, 13):
        ledger.add(held(tag))
    left = set(range(1, 13))
    for batch in batches:
        wanted = set(batch) & left
        acked: set[int] = set()
        for tag, multiple in ledger.acks(sorted(wanted)):
            acked |= {each for each in left if each <= tag} if multiple else {tag}
        assert acked == wanted
        left -= wanted


def test_the_most_urgent_is_handed_out_first() -> None:
    ledger = Ledger()
    for tag, priority in enumerate((0, 3, 9, 3), 1):
        ledger.add(held(tag, priority=priority))
    assert [one.token.tag for one in handed_out(ledger, 4)] == [3, 2, 4, 1]


def test_what_comes_back_after_a_lost_connection_is_held_on() -> None:
    ledger = Ledger()
    ledger.add(held(1, "a"))
    [delivery] = handed_out(ledger, 1)
    ledger.lose()
    back = held(5, "a")
    assert ledger.known(back, 50.0)
    assert (delivery.token.state, delivery.token.tag) == (HELD, 5)
    assert ledger.settle([delivery], 60.0)
    assert ledger.acks([5]) == [(5, True)]


def test_what_was_acked_without_a_connection_is_acked_when_it_comes_back() -> None:
    ledger = Ledger()
    ledger.add(held(1, "a"))
    delivery = handed_out(ledger, 1)
    ledger.lose()
    ledger.settle(delivery, 50.0, remember=True)
    back = held(5, "a")
    assert ledger.known(back, 60.0)
    assert back.state == GONE
    assert not ledger.known(held(6, "a"), 60.0), "once"


def test_what_comes_back_after_its_lease_is_new() -> None:
    ledger = Ledger()
    ledger.add(held(1, "a"))
    [delivery] = handed_out(ledger, 1)
    ledger.lose()
    assert not ledger.known(held(5, "a"), 101.0)
    assert ledger.settle([delivery], 101.0) == []
