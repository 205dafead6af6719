"""The ledger of a partition: what it commits is true, whatever the order in which messages end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qnb.brokers.kafka.ledger import METADATA_BYTES, Ledger, not_waiting

SPAN = 40
offsets = st.integers(0, SPAN - 1)


class Model(RuleBasedStateMachine):
    """The ledger beside a plain dictionary of what has become of each message."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(0)
        self.done: set[int] = set()
        self.held: set[int] = set()
        self.tries: dict[int, int] = {}

    @rule(offset=offsets)
    def hand_out(self, offset: int) -> None:
        if offset not in self.done and offset not in self.held:
            self.held.add(offset)
            self.tries[offset] = self.tries.get(offset, 0) + 1
            assert self.ledger.hand_out(offset) == self.tries[offset]

    @rule(offset=offsets, failed=st.booleans())
    def give_back(self, offset: int, failed: bool) -> None:
        self.ledger.give_back(offset, failed)
        if offset in self.held:
            self.held.discard(offset)
            self.tries[offset] -= not failed

    @rule(offset=offsets)
    def finish(self, offset: int) -> None:
        self.ledger.finish(offset)
        self.done.add(offset)
        self.held.discard(offset)

    @rule(end=offsets)
    def purge(self, end: int) -> None:
        waiting = {o for o in range(end) if o not in self.done and o not in self.held}
        assert self.ledger.finish_below(end) == len(waiting)
        self.done |= waiting

    @rule()
    def move_to_another_worker(self) -> None:
        """As after a crash: what was held waits, and has one try behind it."""
        self.ledger = Ledger.decode(self.ledger.base, self.ledger.encode())
        self.held.clear()

    @invariant()
    def the_base_is_the_finished_prefix(self) -> None:
        assert all(offset in self.done for offset in range(self.ledger.base))
        assert self.ledger.base not in self.done or self.ledger.base >= SPAN

    @invariant()
    def every_message_is_known(self) -> None:
        for offset in range(SPAN):
            assert self.ledger.finished(offset) == (offset in self.done)
            assert self.ledger.held(offset) == (offset in self.held)
            if offset not in self.done:
                assert self.ledger.tries(offset) == self.tries.get(offset, 0)

    @invariant()
    def the_text_counts_what_does_not_wait(self) -> None:
        beyond = {offset for offset in self.done | self.held if offset >= self.ledger.base}
        assert not_waiting(self.ledger.encode()) == len(beyond)
        assert not_waiting(self.ledger.encode(limit=12)) == len(beyond)


TestModel = Model.TestCase


@given(st.sets(st.integers(0, 3000)), st.sets(st.integers(0, 3000)), st.integers(10, 300))
def test_what_does_not_fit_is_delivered_again_and_counted(done: set[int], held: set[int], limit: int) -> None:
    """Cut short, the text may forget that a message is finished; never that one is not, nor that one was tried."""
    ledger = Ledger(0)
    for offset in sorted(held - done):
        ledger.hand_out(offset)
    for offset in done:
        ledger.finish(offset)
    text = ledger.encode(limit)
    assert len(text.encode()) <= limit + 40
    after = Ledger.decode(ledger.base, text)
    for offset in range(3001):
        if after.finished(offset):
            assert offset in done
        elif offset in held:
            assert after.tries(offset) >= 1
    assert not_waiting(text) == not_waiting(ledger.encode(1_000_000))


def test_a_long_ledger_fits_into_what_a_server_keeps() -> None:
    ledger = Ledger(10**12)
    for offset in range(0, 20_000, 2):
        ledger.finish(10**12 + offset + 1)
    assert len(ledger.encode()) < METADATA_BYTES + 90 < 4096


def test_a_cut_ledger_stays_true_when_it_moves_twice() -> None:
    ledger = Ledger(0)
    for offset in range(0, 100, 2):
        ledger.hand_out(offset)
    once = Ledger.decode(0, ledger.encode(40))
    twice = Ledger.decode(0, once.encode(40))
    assert all(twice.tries(offset) >= 1 for offset in range(0, 100, 2))


def test_text_of_a_stranger_is_an_empty_ledger() -> None:
    for text in ("", "x", "something else", "qnb"):
        ledger = Ledger.decode(5, text)
        assert (ledger.base, ledger.tries(5), ledger.finished(5)) == (5, 0, False)


def test_a_log_that_begins_later_has_lost_what_was_before() -> None:
    ledger = Ledger(0)
    ledger.hand_out(3)
    ledger.finish(12)
    ledger.skip_to(10)
    assert (ledger.base, ledger.held(3), ledger.finished(11), ledger.finished(12)) == (10, False, False, True)
