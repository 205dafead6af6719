"""Batch: order, results, futures, cancel, retry, counts, errors, and the table of it."""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import Callable
from datetime import UTC, datetime

import pandas as pd
import pytest

import qnb
from tests.contract.conftest import Gate, until

SECONDS = 20.0
FIXED = [
    "result", "state", "error", "worker", "attempts", "queued_at", "started_at", "finished_at",
    "wait_s", "runtime_s", "output", "task_id",
]  # fmt: skip
STATES = ["pending", "queued", "running", "retrying", "done", "failed", "cancelled", "lost"]


@pytest.fixture
def mixed(session: qnb.Session) -> qnb.Batch:
    """Four good calls, three failed ones of two sorts; over."""

    def work(x: int) -> float:
        if x == 7:
            raise KeyError("seven")
        return 1 / (x % 3)

    batch = session.map(work, range(1, 8))
    assert batch.wait(SECONDS)
    return batch


def test_order_and_length(session: qnb.Session) -> None:
    batch = session.map(lambda x: x * x, range(1000))
    assert len(batch) == 1000
    assert list(batch) == [i * i for i in range(1000)]
    assert batch.results() == list(batch), "as often as one likes"


def test_index(session: qnb.Session) -> None:
    batch = session.map(abs, range(5))
    assert isinstance(batch[0], qnb.Future)
    assert batch[3].result(SECONDS) == 3
    assert batch[-1].result(SECONDS) == 4
    assert batch[-5].result(SECONDS) == 0
    assert batch[2] is batch[2] is batch[-3]
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            batch[wrong]
    assert [f.result(SECONDS) for f in batch[1:3]] == [1, 2], "a slice gives the futures"
    assert [f.result(SECONDS) for f in batch[::-2]] == [4, 2, 0]
    with pytest.raises(TypeError):
        batch["x"]


def test_results_raise_the_first_failure(mixed: qnb.Batch) -> None:
    with pytest.raises(ZeroDivisionError):
        mixed.results()


def test_results_timeout(session: qnb.Session, gate: Gate) -> None:
    batch = session.map(gate.task, range(2))
    with pytest.raises(TimeoutError, match="2 of 2"):
        batch.results(0.01)
    assert batch.wait(0.01) is False
    gate.open()
    assert batch.wait(SECONDS) is True
    assert batch.results(0) == [0, 1]


def test_as_completed(session: qnb.Session, gate: Gate) -> None:
    wait = gate.task

    def first_waits(index: int) -> int:
        return wait(index) if index == 0 else index

    batch = session.map(first_waits, range(6), chunksize=1)
    found = []
    for future in batch.as_completed(SECONDS):
        assert isinstance(future, qnb.Future)
        assert future.done()
        found.append(future.result())
        if len(found) == 5:
            gate.open()
    assert sorted(found) == list(range(6))
    assert found[-1] == 0


def test_as_completed_timeout(session: qnb.Session, gate: Gate) -> None:
    with pytest.raises(TimeoutError):
        list(session.map(gate.task, [1]).as_completed(0.01))


def test_its_futures_in_wait_and_as_completed(session: qnb.Session) -> None:
    batch = session.map(abs, range(20))
    futures = [batch[i] for i in range(20)]
    assert {f.result() for f in cf.as_completed(futures, SECONDS)} == set(range(20))
    assert cf.wait(futures, 0).not_done == set()


def test_cancel(session: qnb.Session, blocked: Gate, gates: Callable[[], Gate]) -> None:
    never = gates()
    batch = session.map(never.task, range(10))
    future = batch[3]
    assert batch.cancel() == 10
    assert batch.cancel() == 0
    assert batch.counts == {"cancelled": 10}
    assert future.cancelled()
    with pytest.raises(cf.CancelledError):
        batch.results(SECONDS)
    blocked.open()
    session.map(lambda i: i, range(20)).results(SECONDS)
    assert never.started() == []


def test_cancel_leaves_what_runs(session: qnb.Session, gate: Gate) -> None:
    batch = session.map(gate.task, range(20), chunksize=1)
    gate.wait(2)
    cancelled = batch.cancel()
    gate.open()
    assert batch.wait(SECONDS)
    assert batch.counts["done"] >= 2
    assert batch.counts["cancelled"] == cancelled
    assert batch.counts["done"] + cancelled == 20


def test_cancel_terminate(session: qnb.Session, gate: Gate) -> None:
    batch = session.map(gate.task, range(6), chunksize=1)
    gate.wait(2)
    batch.cancel(terminate=True)
    assert batch.wait(SECONDS)
    assert batch.counts == {"cancelled": 6}


def test_cancel_one_of_many(session: qnb.Session, blocked: Gate) -> None:
    batch = session.map(abs, range(10), chunksize=10)
    assert batch[4].cancel()
    blocked.open()
    assert batch.wait(SECONDS)
    assert batch.counts == {"done": 9, "cancelled": 1}
    assert batch[4].state == "cancelled"


def test_retry(session: qnb.Session, gate: Gate) -> None:
    opened = str(gate.folder / "opened")

    def work(index: int, name: str) -> str:
        import os

        if index % 2 and not os.path.exists(opened):
            raise ValueError(index)
        return f"{name}{index}"

    batch = session.map(work, range(5), "abcde")
    batch.wait(SECONDS)
    assert batch.counts == {"done": 3, "failed": 2}
    gate.open()
    again = batch.retry()
    assert isinstance(again, qnb.Batch)
    assert again.results(SECONDS) == ["b1", "d3"], "the failed ones only, with their arguments"
    assert again.df["index"].tolist() == [1, 3]
    assert batch.counts == {"done": 3, "failed": 2}, "the first batch stays as it is"
    assert len(again.retry()) == 0


def test_counts(mixed: qnb.Batch, session: qnb.Session, blocked: Gate) -> None:
    assert mixed.counts == {"done": 4, "failed": 3}
    assert mixed.counts["lost"] == 0
    waiting = session.map(abs, range(3))
    assert waiting.counts == {"queued": 3}


def test_errors(mixed: qnb.Batch, session: qnb.Session) -> None:
    errors = mixed.errors
    assert list(errors.columns) == ["error", "count", "example", "first"]
    assert errors.to_dict("records") == [
        {"error": "ZeroDivisionError", "count": 2, "example": "division by zero", "first": 2},
        {"error": "KeyError", "count": 1, "example": "'seven'", "first": 6},
    ]
    assert len(session.map(abs, [1]).errors) == 0


def test_empty(session: qnb.Session) -> None:
    batch = session.map(abs, [])
    assert len(batch) == 0
    assert batch.results() == []
    assert batch.wait(0) is True
    assert list(batch.as_completed()) == []
    assert batch.counts == {}
    assert batch.cancel() == 0
    assert list(batch.df.columns) == ["x", *FIXED]
    assert len(batch.df) == 0


# starmap and sweep ----------------------------------------------------------------------------------------------


def test_starmap(session: qnb.Session) -> None:
    batch = session.starmap(lambda base, exponent: base**exponent, [(2, 3), (3, 2)])
    assert batch.results(SECONDS) == [8, 9]
    assert list(batch.df.columns[:2]) == ["base", "exponent"]
    assert session.starmap(lambda *a: len(a), [(), ()]).results(SECONDS) == [0, 0], "calls without arguments"
    assert session.starmap(abs, []).results() == []
    with pytest.raises(qnb.ConfigurationError, match="different lengths"):
        session.starmap(max, [(1, 2), (1, 2, 3)])


def test_sweep(session: qnb.Session) -> None:
    def score(lr: float, depth: int, offset: int = 0, scale: int = 1) -> float:
        return (lr * depth + offset) * scale

    batch = session.sweep(score, {"lr": [0.5, 0.25], "depth": range(2, 5)}, offset=1, scale=10)
    assert batch.results(SECONDS) == [(lr * depth + 1) * 10 for lr in (0.5, 0.25) for depth in (2, 3, 4)]
    assert list(batch.df.columns) == ["lr", "depth", *FIXED]
    assert batch.df["lr"].tolist() == [0.5] * 3 + [0.25] * 3
    assert batch.df["depth"].tolist() == [2, 3, 4] * 2
    assert session.sweep(score, {"depth": iter([1]), "lr": (2.0,)}).results(SECONDS) == [2.0], "any order, any iterable"
    assert session.sweep(score, {"lr": [], "depth": [1]}).results() == []


def test_sweep_failures_tell_the_call(session: qnb.Session) -> None:
    batch = session.sweep(lambda a, b: a / b, {"a": [1, 2], "b": [0, 1]})
    batch.wait(SECONDS)
    assert batch.df.loc[batch.df["state"] == "failed", ["a", "b"]].values.tolist() == [[1, 0], [2, 0]]


# The table ------------------------------------------------------------------------------------------------------


def test_df(mixed: qnb.Batch) -> None:
    df = mixed.df
    assert list(df.columns) == ["x", *FIXED]
    assert df.index.tolist() == list(range(7))
    assert df["x"].tolist() == list(range(1, 8))
    assert df["state"].dtype == "category"
    assert list(df["state"].cat.categories) == STATES
    assert df["state"].tolist() == ["done", "done", "failed", "done", "done", "failed", "failed"]
    for name in ("queued_at", "started_at", "finished_at"):
        assert isinstance(df[name].dtype, pd.DatetimeTZDtype)
        assert str(df[name].dt.tz) == "UTC"
        assert abs((df[name] - datetime.now(UTC)).dt.total_seconds()).max() < 60
    assert df["wait_s"].dtype == df["runtime_s"].dtype == "float64"
    assert (df["wait_s"] >= 0).all()
    assert (df["runtime_s"] >= 0).all()
    assert df["attempts"].dtype == "int64"
    assert df["attempts"].tolist() == [1] * 7
    assert df["error"].isna().tolist() == [True, True, False, True, True, False, False]
    assert df["error"].tolist()[2] == "ZeroDivisionError: division by zero"
    assert df["error"].tolist()[6] == "KeyError: 'seven'"
    assert df["task_id"].tolist() == [mixed[i].id for i in range(7)]
    assert set(df["worker"]) <= set(mixed.session.workers.names)
    assert df["output"].tolist() == [""] * 7
    assert df["result"].tolist()[:2] == [1.0, 0.5]


def test_df_of_now(session: qnb.Session, blocked: Gate) -> None:
    batch = session.map(abs, [-1.5, -2.5])
    df = batch.df
    assert df["state"].tolist() == ["queued", "queued"]
    assert df["result"].isna().all()
    assert df["queued_at"].notna().all()
    assert df["started_at"].isna().all()
    assert df["finished_at"].isna().all()
    assert isinstance(df["started_at"].dtype, pd.DatetimeTZDtype)
    assert df["runtime_s"].isna().all()
    assert df["runtime_s"].dtype == "float64"
    assert df["worker"].isna().all()
    blocked.open()
    batch.wait(SECONDS)
    assert batch.df["result"].tolist() == [1.5, 2.5]
    assert df["state"].tolist() == ["queued", "queued"], "a table is of the moment it was made"


def test_df_of_cancelled_calls(session: qnb.Session, blocked: Gate) -> None:
    batch = session.map(abs, [1, 2])
    batch.cancel()
    df = batch.df
    assert df["state"].tolist() == ["cancelled"] * 2
    assert df["started_at"].isna().all()
    assert df["runtime_s"].isna().all()


def test_df_keeps_objects(session: qnb.Session) -> None:
    results = session.map(lambda x: [x] * x, range(3))
    results.wait(SECONDS)
    assert results.df["result"].tolist() == [[], [1], [2, 2]]
    lists = session.map(len, [[1, 2], [3, 4]])
    lists.wait(SECONDS)
    assert lists.df.iloc[:, 0].tolist() == [[1, 2], [3, 4]], "a list in a cell stays a list"
    texts = session.map(str, range(2))
    texts.wait(SECONDS)
    assert texts.df["result"].tolist() == ["0", "1"]


def test_a_parameter_called_like_a_column(session: qnb.Session) -> None:
    batch = session.sweep(lambda state, result: state + result, {"state": [1], "result": [2]})
    batch.wait(SECONDS)
    assert list(batch.df.columns) == ["param_state", "param_result", *FIXED]
    assert batch.df["param_state"].tolist() == [1]


def test_expand(session: qnb.Session) -> None:
    batch = session.map(lambda x: {"square": x * x, "half": x / 2, "x": x}, range(3))
    batch.wait(SECONDS)
    assert list(batch.df.columns) == ["x", *FIXED]
    df = batch.to_df(expand=True)
    assert list(df.columns) == ["x", "square", "half", "result_x", *FIXED[1:]]
    assert df["square"].tolist() == [0, 1, 4]
    mixed = session.map(lambda x: {"a": x} if x else None, range(2))
    mixed.wait(SECONDS)
    assert mixed.to_df(expand=True)["a"].tolist()[1] == 1
    plain = session.map(abs, range(2))
    plain.wait(SECONDS)
    assert list(plain.to_df(expand=True).columns) == list(plain.df.columns)


def test_text_of_a_batch(mixed: qnb.Batch) -> None:
    assert "7" in repr(mixed)
    assert "failed" in repr(mixed)
    assert "<" in mixed._repr_html_()


def test_values_that_equal_strangely(session: qnb.Session) -> None:
    """Arrays and frames are values like others."""
    import numpy as np

    arrays = session.map(lambda n: __import__("numpy").arange(n), range(1, 4))
    assert [a.sum() for a in arrays.results(SECONDS)] == [0, 1, 3]
    assert [len(cell) for cell in arrays.df["result"]] == [1, 2, 3]
    sums = session.map(lambda a: float(a.sum()), [np.ones(2), np.ones(3)])
    assert sums.results(SECONDS) == [2.0, 3.0]
    frames = session.map(len, [pd.DataFrame({"a": [1, 2]})])
    assert frames.results(SECONDS) == [2]
    assert len(frames.df) == 1


def test_a_thousand_calls_end_without_anybody_waiting(session: qnb.Session) -> None:
    batch = session.map(abs, range(1000))
    assert until(lambda: batch.over)
    assert batch.counts == {"done": 1000}
