"""Large arguments and results: put aside in the blob store, once; kept results; what they cost those between."""

from __future__ import annotations

import operator
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qnb
from qnb.codec import parts
from tests.contract.conftest import run_python

LARGE = 6 << 20


class Counted:
    """Large, and it tells where it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = "x" * LARGE

    def __setstate__(self, state: Any) -> None:
        import os

        self.__dict__ = state
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.fixture
def puts(session: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what this session puts into the blob store."""
    names: list[str] = []
    put = session.backend.put_blob

    def noting(key: str, data: bytes) -> None:
        names.append(key)
        put(key, data)

    monkeypatch.setattr(session.backend, "put_blob", noting)
    return names


def test_an_array_there_and_back(session: qnb.Session) -> None:
    array = np.arange(LARGE // 8 * 3, dtype="float64").reshape(3, -1)

    def double(values: Any) -> Any:
        values *= 2  # it may be written to, and is this call's own
        return values

    for _ in range(2):
        result = session.submit(double, array).result(60)
        np.testing.assert_array_equal(result, 2 * array)
        result += 1  # and so may the result
    assert array[0, 1] == 1.0


def test_a_table_there_and_back(session: qnb.Session) -> None:
    table = pd.DataFrame({"a": range(LARGE // 8), "b": 0.5, "c": "text"})

    def more(frame: Any) -> Any:
        frame["d"] = frame["a"] * 2
        return frame

    for _ in range(2):
        result = session.submit(more, table).result(60)
        pd.testing.assert_frame_equal(result[["a", "b", "c"]], table)
        assert result["d"].iloc[-1] == 2 * table["a"].iloc[-1]
    assert "d" not in table


@pytest.mark.parametrize("value", [b"b" * LARGE, "ü" * LARGE, ["text"] * LARGE], ids=["bytes", "str", "list"])
def test_what_has_no_buffers(session: qnb.Session, value: Any) -> None:
    def same(given: Any) -> Any:
        return given

    assert session.submit(same, value).result(60) == value
    assert session.map(same, [value, 1]).results(60) == [value, 1]


def test_one_argument_of_many_calls_travels_once_and_is_loaded_once_a_lane(
    session: qnb.Session, kind: str, tmp_path: Any, puts: list[str]
) -> None:
    path = tmp_path / "loaded"
    shared = Counted(str(path))

    def size(given: Any, index: int) -> int:
        return len(given.text) + index

    assert session.map(size, [shared] * 200, range(200)).results(60) == [LARGE + index for index in range(200)]
    large = [name for name in puts if "-args-" not in name and "-" in name]
    assert len(large) == len(set(large)) == -(-LARGE // parts.PART_BYTES)
    loads = path.read_text().split()
    futures = [session.submit(size, shared, index) for index in range(20)]
    assert [future.result(60) for future in futures] == [LARGE + index for index in range(20)]
    if kind != "memory":  # whose lanes are threads of one process
        assert len(loads) == len(set(loads)) <= session.local_workers
    assert len([name for name in puts if "-args-" not in name and "-" in name]) == len(large), "and not again"


def test_a_large_value_goes_from_task_to_task(session: qnb.Session) -> None:
    def make(n: int) -> Any:
        import numpy

        return numpy.ones(n)

    made = session.submit(make, LARGE // 8 + 5)
    assert session.submit(np.sum, made).result(60) == LARGE // 8 + 5
    pair = session.submit(lambda values: [float(each.sum()) for each in values], [made, made]).result(60)
    assert pair == [LARGE // 8 + 5] * 2


def test_a_result_that_is_kept(session: qnb.Session) -> None:
    @session.task(keep=True)
    def table(n: int) -> Any:
        import pandas

        return pandas.DataFrame({"a": range(n)})

    kept = table.submit(1000).result(60)
    assert isinstance(kept, qnb.Kept)
    assert kept.type_name == "DataFrame"
    assert 8000 < kept.nbytes < 20_000
    assert 6 * 86400 < kept.until - time.time() < 8 * 86400
    assert "DataFrame, 8." in repr(kept)
    assert "KB" in repr(kept)
    assert kept.get()["a"].sum() == 499_500
    assert session.submit(len, kept).result(60) == 1000, "as an argument it is the value"
    assert session.submit(lambda several: [len(each) for each in several], [kept, kept]).result(60) == [1000, 1000]
    assert session.submit(len, table.submit(7)).result(60) == 7, "and so is the future of one"


def test_kept_results_of_a_batch_that_is_attached(session: qnb.Session, sister: qnb.Session) -> None:
    batch = session.task(list, keep=True).map([range(3), range(4)])
    assert [type(value) for value in batch.results(60)] == [qnb.Kept, qnb.Kept]
    attached = sister.attach(batch.run)
    assert attached.results(60)[1].get() == [0, 1, 2, 3]
    assert sister.submit(sum, attached.results()[1]).result(60) == 6


def test_none_is_kept_too(session: qnb.Session) -> None:
    kept = session.task(print, keep=True).submit().result(60)
    assert kept.get() is None


def test_what_was_put_aside_and_is_gone(session: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails and says so; nothing waits for ever."""
    monkeypatch.setattr(session.backend, "put_blob", lambda key, data: None)
    session.aside._stored._until.clear()
    error = session.submit(len, np.zeros(LARGE, dtype="uint8")).exception(60)
    assert "no longer has the blob" in str(error)


SCRIPT = """
import os, resource, sys
import numpy as np
import qnb

def mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def worker():
    replies = session.control.stats(timeout=10)
    [stats] = [reply for name, reply in replies.items() if name.startswith(f"local-{os.getpid()}-")]
    return stats["max_rss_bytes"] / 2**20

def make(n):
    import numpy
    return numpy.ones(n, dtype="uint8")

def size(array):
    return array.nbytes

session = qnb.Session(sys.argv[1], workers=1, queue="large")
session.submit(size, np.ones(3)).result(60), session.submit(make, 3).result(60)
large = make(256 * 2**20)
before, worker_before = mib(), worker()
assert session.submit(size, large).result(100) == 256 * 2**20
print("sent", mib() - before, worker() - worker_before)
del large
before = mib()
result = session.submit(make, 256 * 2**20).result(100)
print("came", mib() - before, worker() - worker_before)
session.close()
"""


def test_what_a_large_value_costs_those_between(kind: str, place: str, tmp_path: Any) -> None:
    """256 MiB there and back: neither the session nor the worker that passes it on ever holds it a second time."""
    if kind == "memory":
        pytest.skip("its worker is the session's own process")
    script = tmp_path / "large.py"
    script.write_text(SCRIPT)
    done = run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", place, timeout=110)
    assert done.returncode == 0, done.stderr
    (_, session_in, worker_in), (_, session_out, worker_out) = (line.split() for line in done.stdout.splitlines())
    print(f"{kind}: {done.stdout}")
    assert float(session_in) < 64, "MiB more, besides what it held"
    assert float(session_out) < 64, "the result takes the place of the argument"
    assert max(float(worker_in), float(worker_out)) < 64


def test_no_call_sees_what_another_has_done_to_its_argument(session: qnb.Session) -> None:
    def spoil(given: Any) -> int:
        given.append(1)
        return len(given)

    large = ["text"] * 2_000_000
    assert [session.submit(spoil, large).result(60) for _ in range(3)] == [2_000_001] * 3


def test_a_retry_has_its_argument_anew(session: qnb.Session) -> None:
    @session.task(retries=2, backoff=0.01)
    def spoil(given: Any, _index: int) -> int:
        given.append(1)
        if qnb.current().attempt < 3:  # type: ignore[union-attr]
            raise ValueError("not yet")
        return len(given)

    large = ["text"] * 2_000_000
    assert max(spoil.map([large] * 2, range(2)).results(60)) <= 2_000_002


def test_a_result_beside_one_that_cannot_be_pickled(session: qnb.Session) -> None:
    """What was left out of the one is not taken for the other's."""

    def make(index: int) -> Any:
        import threading

        import numpy

        array = numpy.full(3 << 20, index, dtype="uint8")
        return (array, threading.Lock()) if index == 1 else array

    batch = session.map(make, range(4), chunksize=4)
    assert batch.wait(60)
    assert batch.counts == {"done": 3, "failed": 1}
    assert [int(batch[i].result()[0]) for i in (0, 2, 3)] == [0, 2, 3]
    assert {batch[i].result().nbytes for i in (0, 2, 3)} == {3 << 20}


def test_what_calls_of_a_module_s_function_share_travels_once(session: qnb.Session, puts: list[str]) -> None:
    floats = [float(i) for i in range(100_000)]
    batch = session.map(operator.contains, [floats] * 20, [99_990 + i for i in range(20)])
    assert batch.results(60) == [True] * 10 + [False] * 10
    assert len([name for name in puts if "-args-" not in name]) == 2, "the function, and the list once"
