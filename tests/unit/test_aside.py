"""What becomes of the arguments of many calls: plain where nothing is large, put aside once where calls share it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qnb.backends.sql import SqlBackend
from qnb.codec.payloads import count_calls
from qnb.codec.references import dumps_referring, loads_referring
from qnb.codec.signing import Signer
from qnb.message import ValueOf
from qnb.session.aside import LARGE_BYTES, SHARED_BYTES, Aside, Memo
from qnb.session.runs import Past
from qnb.session.stored import StoredBlobs

FLOATS = [float(i) for i in range(SHARED_BYTES // 4)]


@pytest.fixture
def aside(tmp_path: Path) -> Iterator[Aside]:
    backend = SqlBackend(f"sqlite:///{tmp_path}/q.db")
    yield Aside(backend, Signer(b"the key of these tests, used for nothing else"), None, StoredBlobs(backend))
    backend.close()


@pytest.mark.parametrize("large", [FLOATS, {"a": FLOATS}, "x" * SHARED_BYTES], ids=["list", "dict", "text"])
def test_what_calls_of_a_module_s_function_share(aside: Aside, large: Any) -> None:
    columns = [list(range(20)), [large] * 20]
    data = aside.pack_rows(columns, (), True, Memo(columns))
    assert (data[:1], count_calls(data)) == (b"r", 20)
    assert len(data) < 20 * 200
    by_name = aside.pack_rows(columns, (), True, Memo(columns, by_name=True))
    assert by_name[:1] == b"c", "workers of some modules only open no pickle"


def test_later_frames_of_the_same_run_do_not_encode_it(aside: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [list(range(20)), [FLOATS] * 20]
    memo = Memo(columns)
    for start in range(0, 20, 5):
        data = aside.pack_rows([column[start : start + 5] for column in columns], (), True, memo)
        assert (data[:1], count_calls(data)) == (b"r", 5)
        monkeypatch.setattr("qnb.session.aside.encode_columns", None)


def test_what_stays_plain(aside: Aside) -> None:
    apart: list[list[Any]]
    for apart in ([[list(FLOATS) for _ in range(3)]], [[[i, "x" * 100] for i in range(5000)]]):
        assert aside.pack_rows(apart, (), True, Memo(apart))[:1] == b"c"
    large = [[[float(i) for i in range(LARGE_BYTES // 8)]]]
    assert aside.pack_rows(large, (), True, Memo(large))[:1] == b"r"


@pytest.mark.parametrize(
    "column, kind",
    [
        ([(i, i) for i in range(50)], b"p"),
        ([*([(1, 2)] * 49), Past(ValueOf("run", 0))], b"r"),
        ([*([(1, 2)] * 49), os.urandom(LARGE_BYTES)], b"r"),
        ([*([(1, 2)] * 49), lambda: 3], b"p"),
    ],
    ids=["small", "one that refers", "one that is large", "one by value"],
)
def test_rows_that_are_pickled(aside: Aside, column: Sequence[Any], kind: bytes) -> None:
    columns, memo = [column, column], Memo([column, column])
    for names in ((), ("b",), ("a", "b")):
        data = aside.pack_rows(columns, names, False, memo)
        assert (data[:1], count_calls(data)) == (kind, 50)


class Lends:
    """What it is pickled as refers to objects that nobody keeps."""

    def __reduce__(self) -> Any:
        return list, (), None, (Past(ValueOf("run", number)) for number in range(100))


def test_what_refers_and_is_gone_at_once() -> None:
    """Another object gets its place in memory, and with it its id."""
    data, references = dumps_referring(Lends(), None)
    assert references == [ValueOf("run", number) for number in range(100)]
    assert loads_referring(data, range(100)) == list(range(100))
