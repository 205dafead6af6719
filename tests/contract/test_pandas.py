"""`df.qnb` gives what pandas gives for the same function, whatever that returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal

import qnb
import qnb.pandas
from tests.contract.conftest import FEW, until

BROKERS = FEW
COUNT = 500


@pytest.fixture
def frame() -> pd.DataFrame:
    """Rows of several types under an index that is neither sorted nor unique."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "n": rng.integers(0, 100, COUNT),
            "x": rng.normal(size=COUNT),
            "word": rng.choice(["a", "bb", "ccc"], COUNT),
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 30, COUNT), "D"),
        },
        index=pd.Index(rng.integers(0, COUNT, COUNT), name="key"),
    )


def same(found: Any, wanted: Any) -> None:
    (assert_frame_equal if isinstance(wanted, pd.DataFrame) else assert_series_equal)(found, wanted)


ROWS: dict[str, Callable[..., Any]] = {
    "numbers": lambda row: row.n * 2,
    "floats": lambda row: row.x + 1,
    "numbers or nothing": lambda row: row.n if row.n % 2 else None,
    "numbers, and few floats": lambda row: row.n if row.n != 17 else 0.5,
    "text": lambda row: f"{row.word}!",
    "days": lambda row: row.day + pd.Timedelta("1D"),
    "lists": lambda row: [row.n, row.word],
    "dicts": lambda row: {"n": row.n},
    "Series": lambda row: pd.Series({"twice": 2 * row.n, "word": row.word, "day": row.day}),
    "the row": lambda row: row,
    "parts": lambda row: row[["x", "n"]],
}


@pytest.mark.parametrize("name", ROWS)
def test_apply(session: qnb.Session, frame: pd.DataFrame, name: str) -> None:
    same(frame.qnb(session=session).apply(ROWS[name], axis=1), frame.apply(ROWS[name], axis=1))


@pytest.mark.parametrize("result_type", ["expand", "reduce", "broadcast"])
def test_result_types(session: qnb.Session, frame: pd.DataFrame, result_type: Any) -> None:
    numbers = frame[["n", "x"]].reset_index(drop=True)  # pandas itself cannot broadcast over equal labels
    remote = numbers.qnb(session=session).apply(lambda row: [row.n, 2.0], axis=1, result_type=result_type)
    same(remote, numbers.apply(lambda row: [row.n, 2.0], axis=1, result_type=result_type))


def test_arguments(session: qnb.Session, frame: pd.DataFrame) -> None:
    def scaled(row: Any, factor: int, plus: int = 0) -> Any:
        return row.n * factor + plus

    same(
        frame.qnb(session=session).apply(scaled, axis=1, args=(3,), plus=1),
        frame.apply(scaled, axis=1, args=(3,), plus=1),
    )
    with pytest.raises(qnb.ConfigurationError, match="axis=1"):
        frame.qnb(session=session).apply(scaled, axis=0)


def test_nothing_to_do(session: qnb.Session, frame: pd.DataFrame) -> None:
    accessor = frame.iloc[:0].qnb(session=session)
    same(accessor.map_rows(lambda row: 1), pd.Series([], index=frame.index[:0], dtype="object"))
    empty = accessor.apply(ROWS["numbers"], axis=1)
    assert type(empty) is type(frame.iloc[:0].apply(ROWS["numbers"], axis=1))
    same(frame.iloc[:1].qnb(session=session).apply(ROWS["numbers"]), frame.iloc[:1].apply(ROWS["numbers"], axis=1))
    same(frame.iloc[:3].n.qnb(session=session).map(abs), frame.iloc[:3].n.map(abs))


def test_map_rows(session: qnb.Session, frame: pd.DataFrame) -> None:
    accessor = frame.qnb(session=session)
    wanted = pd.DataFrame({"twice": 2 * frame.n, "up": frame.word.str.upper()})
    same(accessor.map_rows(lambda row: {"twice": 2 * row["n"], "up": row["word"].upper()}), wanted)
    same(accessor.map_rows(lambda row, by: row["n"] * by, by=2), (2 * frame.n).rename(None))
    lists = accessor.map_rows(lambda row: [row["n"]])
    assert list(lists) == [[n] for n in frame.n]
    assert lists.index.equals(frame.index)


VALUES: dict[str, Callable[[Any], Any]] = {
    "n": lambda n: n * 2,
    "x": lambda x: None if x < 0 else x,
    "word": lambda word: word.upper(),
    "day": lambda day: day.day_of_week,
}


@pytest.mark.parametrize("column", VALUES)
def test_series(session: qnb.Session, frame: pd.DataFrame, column: str) -> None:
    series, function = frame[column], VALUES[column]
    same(series.qnb(session=session).map(function), series.map(function))
    same(series.qnb(session=session).apply(function), series.apply(function))
    missing = series.where(series.index % 3 > 0)
    same(missing.qnb(session=session).map(str, na_action="ignore"), missing.map(str, na_action="ignore"))


def test_series_of_categories_and_what_is_no_function(session: qnb.Session, frame: pd.DataFrame) -> None:
    series = frame.word.astype("category")
    same(series.qnb(session=session).map(str.upper), series.map(str.upper))
    same(series.qnb(session=session).map({"a": 1}), series.map({"a": 1}))
    spread = frame.n.head(50)
    same(
        spread.qnb(session=session).apply(lambda n: pd.Series([n, -n])),
        spread.apply(lambda n: pd.Series([n, -n])),
    )


GROUPS: dict[str, Callable[..., Any]] = {
    "numbers": lambda group: group.x.sum(),
    "Series": lambda group: pd.Series({"least": group.x.min(), "most": group.x.max()}),
    "frames": lambda group: group.nlargest(2, "x"),
    "as many rows": lambda group: group.x - group.x.mean(),
    "names": lambda group: str(group.name),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("keys", ["word", ["word", "n"]])
def test_groups(session: qnb.Session, frame: pd.DataFrame, name: str, keys: Any) -> None:
    if name == "as many rows":
        frame = frame.reset_index(drop=True)
    same(frame.groupby(keys).qnb(session=session).apply(GROUPS[name]), frame.groupby(keys).apply(GROUPS[name]))


def test_groups_of_a_series(session: qnb.Session, frame: pd.DataFrame) -> None:
    grouped = frame.x.groupby(frame.word)
    same(grouped.qnb(session=session).apply(lambda x: x.max() - x.min()), grouped.apply(lambda x: x.max() - x.min()))


def test_an_exception_is_the_functions_own(session: qnb.Session, frame: pd.DataFrame) -> None:
    def fail(row: Any) -> None:
        raise KeyError(row.n)

    with pytest.raises(KeyError):
        frame.qnb(session=session).apply(fail, axis=1)


def test_cheap_rows_travel_in_blocks_and_dear_ones_alone(session: qnb.Session, frame: pd.DataFrame) -> None:
    until(lambda: session.workers.names)

    def calls_of(function: Callable[[Any], Any], rows: int) -> int:
        frame.iloc[:rows].n.qnb(session=session).map(function)
        return len(session.attach(session.newest_run() or ""))

    assert calls_of(lambda n: n, COUNT) <= 64
    assert calls_of(lambda n: time.sleep(0.3), 10) == 6


def test_registered_by_import_alone() -> None:
    assert {"FrameAccessor", "SeriesAccessor"} <= {type(pd.DataFrame.qnb).__name__} | {
        pd.DataFrame.qnb.__name__, pd.Series.qnb.__name__
    }  # fmt: skip
