"""A Batch as a pandas DataFrame, and its rows as text."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from qnb.message import STATES

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.batch import Batch

FIXED = (
    "result", "state", "error", "worker", "attempts", "queued_at", "started_at", "finished_at",
    "wait_s", "runtime_s", "output", "task_id",
)  # fmt: skip


class _Short(reprlib.Repr):
    """reprlib's, with dicts in their own order."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}" if x else "{}"
        items = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return "{" + ", ".join(items + ["..."] * (len(x) > self.maxdict)) + "}"


_short = _Short()
_short.maxstring = _short.maxother = 78
_short.maxlist = _short.maxtuple = _short.maxdict = 6


def parameter_columns(batch: Batch) -> list[tuple[str, list[Any]]]:
    """Parameters with the names of their columns; one called like a fixed column gets `param_` in front."""
    return [(f"param_{name}" if name in FIXED else name, values) for name, values in batch.parameters]


def column_names(batch: Batch) -> list[str]:
    """The DataFrame's columns, in order."""
    return [name for name, _ in parameter_columns(batch)] + list(FIXED)


def make_frame(batch: Batch, expand: bool = False) -> pd.DataFrame:
    """The table of now."""
    import numpy as np
    import pandas as pd

    data, count = batch.data, len(batch)
    queued, started, finished = (
        np.where(times == 0.0, np.nan, times)
        for times in (np.array(column, dtype="float64") for column in (data.queued, data.started, data.finished))
    )
    states = np.frombuffer(bytes(data.states), dtype="int8")
    columns: dict[str, Any] = {name: _series(values) for name, values in parameter_columns(batch)}
    columns["result"] = _objects(data.values)
    columns["state"] = pd.Categorical.from_codes(states, categories=list(STATES))
    errors: Any = np.full(count, None, dtype=object)
    for index in {*data.failures, *data.errors}:
        errors[index] = data.error_text(index)
    columns["error"] = pd.Series(errors, dtype=object, index=pd.RangeIndex(count, name="call"))
    workers = np.array(data.workers, dtype="uint16")  # before their names, of which there may be more by then
    columns["worker"] = np.array([name or None for name in data.worker_names], dtype=object)[workers]
    columns["attempts"] = np.frombuffer(bytes(data.attempts), dtype="uint8").astype("int64")
    for name, times in (("queued_at", queued), ("started_at", started), ("finished_at", finished)):
        columns[name] = _utc(times)
    columns["wait_s"] = started - queued
    columns["runtime_s"] = finished - started
    outputs: Any = np.full(count, "", dtype=object)
    for index, text in list(data.outputs.items()):
        outputs[index] = text
    for index in list(data.heard):
        outputs[index] = data.output(index)
    columns["output"] = outputs
    prefix = batch.run + ":"
    columns["task_id"] = [prefix + str(index) for index in range(count)]
    frame = pd.DataFrame(columns, index=pd.RangeIndex(count, name="call"))
    return _expanded(frame) if expand else frame


def _series(values: list[Any]) -> Any:
    """A parameter's column; what is no plain value stays an object a cell."""
    import pandas as pd

    if any(hasattr(value, "__len__") and not isinstance(value, (str, bytes)) for value in values[:100]):
        return _objects(values)
    return pd.Series(values, index=pd.RangeIndex(len(values), name="call"))


def _objects(values: list[Any]) -> Any:
    """Values as they are: a list in a cell stays a list; plain numbers become a column of numbers."""
    import numpy as np
    import pandas as pd

    kinds = set(map(type, values))
    if kinds and kinds <= {int, float, bool, str} and (len(kinds) == 1 or kinds == {int, float}):
        return pd.Series(values, index=pd.RangeIndex(len(values), name="call"))
    if kinds == {float, type(None)} or kinds == {int, float, type(None)}:
        return pd.Series(values, index=pd.RangeIndex(len(values), name="call"), dtype="float64")
    cells = np.empty(len(values), dtype=object)
    for index, value in enumerate(values) if kinds != {type(None)} else ():
        cells[index] = value
    return cells


def _utc(times: Any) -> Any:
    import numpy as np
    import pandas as pd

    missing = np.isnan(times)
    stamps = np.where(missing, 0, times * 1e6).astype("int64").astype("datetime64[us]")
    stamps[missing] = np.datetime64("NaT")
    return pd.DatetimeIndex(stamps).tz_localize("UTC")


def _expanded(frame: pd.DataFrame) -> pd.DataFrame:
    """Dict results as columns in the place of `result`; what is no dict stays in `result`."""
    import pandas as pd

    is_dict = frame["result"].map(lambda value: isinstance(value, dict))
    if not is_dict.any():
        return frame
    spread = pd.DataFrame(list(frame["result"][is_dict]), index=frame.index[is_dict]).reindex(frame.index)
    spread.columns = [f"result_{name}" if name in frame.columns else str(name) for name in spread.columns]
    place = frame.columns.get_loc("result")
    rest = frame.drop(columns="result") if is_dict.all() else frame
    left, right = rest.iloc[:, :place], rest.iloc[:, place:]
    return pd.concat([left, spread, right], axis=1)


def display_rows(batch: Batch, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows for people: values as text of at most 80 characters, times as Unix seconds."""
    data, parameters = batch.data, parameter_columns(batch)
    rows = []
    for index in indices:
        row: dict[str, Any] = {name: short(values[index]) for name, values in parameters}
        queued, started, finished = (column[index] or None for column in (data.queued, data.started, data.finished))
        row |= {
            "result": "" if data.states[index] != STATES.index("done") else short(data.values[index]),
            "state": STATES[data.states[index]],
            "error": data.error_text(index) or "",
            "worker": data.worker_names[data.workers[index]],
            "attempts": data.attempts[index],
            "queued_at": queued,
            "started_at": started,
            "finished_at": finished,
            "wait_s": started - queued if started and queued else None,
            "runtime_s": finished - started if finished and started else None,
            "output": data.output(index),
            "progress": data.steps.get(index),
            "task_id": f"{batch.run}:{index}",
        }
        rows.append(row)
    return rows


def short(value: Any) -> str:
    """A value in at most 80 characters; never raises, whatever its repr does."""
    try:
        text = _short.repr(value) if not isinstance(value, float) else f"{value:.6g}"
    except Exception as error:
        text = f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
