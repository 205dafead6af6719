"""The counts of runs in the table."""

from __future__ import annotations

from typing import Any

import pytest

from qnb.codec.signing import OUTCOMES, RUN, Signer
from qnb.message import CANCELLED, DONE, FAILED, Outcomes, RunRecord, Stored
from qnb.session import history
from qnb.session.runs import Detail

SIGNER = Signer(b"k" * 20)


class Own:
    """Somebody's own backend, of which only this is asked here. It has an equality of its own, so it can be no key."""

    def __init__(self, records: list[Stored]) -> None:
        self.records = records

    def __eq__(self, other: object) -> bool:
        return self is other

    def list_runs(self, limit: int) -> list[RunRecord]:
        detail = Detail(b"h" * 32, False, "", {}, [], [])
        return [RunRecord("r", "map", "f", 10, 0.0, "s", SIGNER.pack(RUN, detail))]

    def fetch_many(self, run: str) -> list[Stored]:
        return self.records


def stored(first: int, states: bytes, count: int = 0) -> Stored:
    count = count or len(states)
    return Stored("r", first, count, SIGNER.pack(OUTCOMES, Outcomes("r", first, count, states, b"", b"", "w")))


@pytest.mark.parametrize(
    "records, counts",
    [
        ([stored(0, b"", 10)], (10, 0, 0)),
        ([stored(0, b"", 6), stored(4, b"", 6)], (10, 0, 0)),
        ([stored(0, bytes([DONE, FAILED, DONE])), stored(2, bytes([FAILED, FAILED, CANCELLED]))], (2, 2, 1)),
        ([stored(0, b"", 8), stored(2, bytes([FAILED] * 3))], (8, 0, 0)),
        ([Stored("r", 0, 10, b"of somebody with another key"), stored(2, b"", 8)], (8, 0, 0)),
    ],
    ids=["one", "cut differently", "overlapping", "one in another", "one that cannot be read"],
)
def test_each_call_counts_once(records: list[Stored], counts: tuple[int, int, int]) -> None:
    found = history._counts(records, SIGNER)
    assert (found["done"], found["failed"], found["cancelled"]) == counts


def test_a_backend_that_cannot_be_a_key() -> None:
    own: Any = Own([stored(0, b"", 10)])
    for _ in range(2):
        [row] = history.rows(own, SIGNER, 100)
        assert dict(zip(history.COLUMNS, row, strict=True))["done"] == 10
