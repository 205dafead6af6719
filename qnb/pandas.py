"""`df.qnb.apply`, `df.qnb.map_rows`, `series.qnb.map`, `df.groupby(…).qnb.apply`: pandas, on workers.

`import qnb.pandas` or `%load_ext qnb` registers them. Rows travel in blocks, as many as take about half a second, and
pandas itself puts the results together: what it is given is what the same function would have given it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from qnb.errors import ConfigurationError

if TYPE_CHECKING:
    from qnb.session.session import Session

BLOCK_SECONDS = 0.5
# Rows that are sent one by one to see how long one takes, and how long they are waited for.
PROBES, PROBE_SECONDS = 4, 0.25
# A job is cut in at least so many blocks a lane, so that all have work until the end, and in at most so many in all.
BLOCKS_A_LANE, MOST_BLOCKS = 8, 4096
Function = Callable[..., Any]
Block = Any  # a part of a DataFrame or Series, or some groups


class _Accessor:
    """What `.qnb` gives. Called, it takes a session and whether progress is shown: `df.qnb(session=s).apply(f)`."""

    def __init__(self, data: Any, session: Session | None = None, progress: bool = True) -> None:
        self._data = data
        self._session = session
        self._progress = progress

    def __call__(self, *, session: Session | None = None, progress: bool = True) -> Any:
        """The same with another session than the current one, or without showing progress."""
        return type(self)(self._data, session, progress)

    def _run(self, work: Callable[[Block], list[Any]], cut: Callable[[int, int], Block], count: int, name: str) -> Any:
        """All results of `count` rows, in order, as an iterator."""
        session = self._session or _session()
        return iter(_Run(session, work, cut, name).results(count, self._progress))


class FrameAccessor(_Accessor):
    """`df.qnb`."""

    def apply(
        self, func: Function, axis: Any = 1, *, args: tuple[Any, ...] = (), result_type: Any = None, **kwargs: Any
    ) -> Any:
        """`df.apply(func, axis=1)` on workers: `func` gets a row as a Series. A scalar each gives a Series, a Series
        each a DataFrame, as in pandas; the index is that of `df`. An exception of `func` is raised here."""
        frame = self._data
        if axis not in (1, "columns"):
            raise ConfigurationError("df.qnb.apply works on rows: give axis=1, or use df.apply for columns")
        if not len(frame) or not len(frame.columns):
            return frame.apply(func, axis=1, args=args, result_type=result_type, **kwargs)
        work = partial(_apply_rows, func, args, kwargs)
        results = self._run(work, lambda start, stop: frame.iloc[start:stop], len(frame), _name(func))
        # To put results together pandas looks at them and at the index; with columns of the rows only in one case.
        rows = frame if result_type == "broadcast" else pd.DataFrame({"row": range(len(frame))}, index=frame.index)
        return rows.apply(lambda _: next(results), axis=1, result_type=result_type)

    def map_rows(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        """`func` with each row as a dict of plain values. Dicts or Series give a DataFrame, all else a Series."""
        frame = self._data
        if not len(frame):
            return pd.Series([], index=frame.index, dtype="object")
        work = partial(_map_rows, func, args, kwargs)
        results = list(self._run(work, lambda start, stop: frame.iloc[start:stop], len(frame), _name(func)))
        if results and all(isinstance(result, (dict, pd.Series)) for result in results):
            return pd.DataFrame(results).set_axis(frame.index, axis=0)
        return pd.Series(results, index=frame.index)


class SeriesAccessor(_Accessor):
    """`series.qnb`."""

    def map(self, func: Any, na_action: Any = None) -> Any:
        """`series.map(func)` on workers. A dict or Series in the place of a function is looked up here."""
        series = self._data
        if not callable(func) or not len(series):
            return series.map(func, na_action=na_action)
        if isinstance(series.dtype, pd.CategoricalDtype):  # of which pandas asks each category once
            categories = pd.Series(series.cat.categories)
            known = dict(zip(categories, self._mapped(categories, func, None), strict=True))
            return series.map(lambda value: known[value] if value in known else func(value), na_action=na_action)
        results = self._mapped(series, func, na_action)
        return series.map(lambda _: next(results), na_action=na_action)

    def apply(self, func: Function, args: tuple[Any, ...] = (), **kwargs: Any) -> Any:
        """`series.apply(func)` on workers: `func` gets each value."""
        series: Any = self._data
        if not len(series) or isinstance(series.dtype, pd.CategoricalDtype):
            return series.apply(func, args=args, **kwargs)
        results = self._mapped(series, partial(_called, func, args, kwargs), None)
        return series.apply(lambda _: next(results))

    def _mapped(self, series: pd.Series, func: Function, na_action: Any) -> Iterator[Any]:
        work = partial(_map_values, func, na_action)
        found: Iterator[Any] = self._run(work, lambda start, stop: series.iloc[start:stop], len(series), _name(func))
        return found


class GroupByAccessor(_Accessor):
    """`df.groupby(…).qnb`."""

    def apply(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        """`df.groupby(…).apply(func)` on workers, a group a call where groups are large."""
        grouped, own = self._data, {}
        if "include_groups" in kwargs:
            own["include_groups"] = kwargs.pop("include_groups")  # is groupby's
        groups: list[tuple[Any, Any]] = []
        grouped.apply(lambda group: groups.append((group.name, group)), **own)
        if not groups:
            return grouped.apply(func, *args, **own, **kwargs)
        work = partial(_apply_groups, func, args, kwargs)
        results = self._run(work, lambda start, stop: groups[start:stop], len(groups), _name(func))
        return grouped.apply(lambda _: next(results), **own)


class _Run:
    """One job: rows as blocks, probes first."""

    def __init__(
        self, session: Session, work: Callable[[Block], list[Any]], cut: Callable[[int, int], Block], name: str
    ) -> None:
        self._session = session
        self._task = session.task(work, name=name)
        self._cut = cut

    def results(self, count: int, progress: bool) -> list[Any]:
        """The results of all rows; raises what the first failing row raised."""
        probes = min(PROBES, count)
        first = self._blocks(range(probes + 1))
        rows = 1
        if first.wait(PROBE_SECONDS):
            rows = self._rows_a_block(first, count - probes)
        rest = count - probes
        rows = max(rows, math.ceil(rest / MOST_BLOCKS))
        edges = [*range(probes, count, rows), count] if rest else [count]
        blocks = self._blocks(edges)
        if progress and rest:
            self._show(blocks)
        try:
            return [result for batch in (first, blocks) for block in batch.results() for result in block]
        except BaseException:
            for batch in (first, blocks):
                if not batch.over:
                    batch.cancel()  # nobody waits for what is left
            raise

    def _blocks(self, edges: Sequence[int]) -> Any:
        parts = [self._cut(start, stop) for start, stop in pairwise(edges)]
        return self._session.map(self._task, parts)

    def _rows_a_block(self, probes: Any, count: int) -> int:
        seconds = [end - start for start, end in zip(probes.data.started, probes.data.finished, strict=True)]
        each = max(1e-6, min(seconds))  # the first may have had to import something
        share = math.ceil(count / (BLOCKS_A_LANE * lanes(self._session)))
        return max(1, min(int(BLOCK_SECONDS / each), share))

    def _show(self, batch: Any) -> None:
        import sys

        from qnb.notebook.terminal import follow, in_notebook, show

        if in_notebook():
            show(batch)
        elif sys.stderr.isatty():
            follow(batch)


def lanes(session: Session) -> int:
    """How many calls the workers of a session run at a time, as far as they can be seen; 1 at least."""
    seen = sum(int(worker.get("concurrency", 1)) for worker in session.workers)
    return max(1, seen or session.local_workers)


def _session() -> Session:
    from qnb.session.session import Session, current_session

    return current_session() or Session()


def _name(func: Any) -> str:
    from qnb.codec.functions import name_of

    return str(name_of(func))


# On workers -----------------------------------------------------------------------------------------------------


def _apply_rows(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], block: pd.DataFrame) -> list[Any]:
    results: list[Any] = []

    def keep(row: Any) -> None:
        result = func(row, *args, **kwargs)
        # pandas may use one Series for one row after the other.
        results.append(result.copy() if isinstance(result, pd.Series) else result)

    block.apply(keep, axis=1)
    return results


def _map_rows(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], block: pd.DataFrame) -> list[Any]:
    return [func(row, *args, **kwargs) for row in block.to_dict("records")]


def _map_values(func: Function, na_action: Any, block: pd.Series) -> list[Any]:
    results: list[Any] = []
    block.map(lambda value: results.append(func(value)), na_action=na_action)
    return results


def _called(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    return func(value, *args, **kwargs)


def _apply_groups(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], block: Block) -> list[Any]:
    results = []
    for name, group in block:
        object.__setattr__(group, "name", name)  # as pandas does; a pickle does not keep it
        results.append(func(group, *args, **kwargs))
    return results


def register() -> None:
    """Give DataFrame, Series and what groupby gives their `.qnb`."""
    from pandas.core.groupby import DataFrameGroupBy, SeriesGroupBy

    pd.api.extensions.register_dataframe_accessor("qnb")(FrameAccessor)
    pd.api.extensions.register_series_accessor("qnb")(SeriesAccessor)
    for grouped in (DataFrameGroupBy, SeriesGroupBy):
        grouped.qnb = property(GroupByAccessor)


register()
