"""What a consumer has of its partitions."""

from __future__ import annotations

import time

from qnb.brokers.kafka.ledger import Ledger
from qnb.brokers.kafka.records import Entry
from qnb.brokers.kafka.shelf import Shelf

STAYS, GOES = ("t", 0), ("t", 1)


def test_a_partition_that_goes_hands_nothing_out_any_more() -> None:
    """While what is held of it is brought to safety: its next owner hands out the rest, and twice were wrong."""
    shelf = Shelf()
    for place in (STAYS, GOES):
        shelf.add_part(place, Ledger(0))
        for offset in range(3):
            shelf.put(Entry("q", *place, offset, b"%d.%d" % (place[1], offset), order=10 * place[1] + offset))
    held = shelf.take(4, time.monotonic(), 30.0, ["q"])
    assert [entry.body for entry in held] == [b"0.0", b"0.1", b"0.2", b"1.0"]
    assert shelf.leave([GOES]) == held[3:]
    assert (shelf.ready, shelf.take(9, time.monotonic(), 30.0, ["q"])) == (0, [])
    for entry in (held[0], held[3]):
        shelf.back(entry, failed=False)  # one that is given back waits here only where its partition stays
    assert shelf.take(9, time.monotonic(), 30.0, ["q"]) == [held[0]]
    assert not shelf.parts[GOES].ledger.held(0)
