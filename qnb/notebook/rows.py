"""The calls of a batch as columns of bytes: what has been told of them to the browser, and what is new.

Numbers travel as they lie in memory, ten thousand in a millisecond. Text takes longer to make, so that it follows at a
bounded cost, and what is being looked at is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from qnb.message import DONE, FAILED, LOST, RUNNING
from qnb.notebook.snapshot import BatchLike, saying, short
from qnb.session.frame import short as short_repr

RESULT = -1
# Seconds of one core that text may take a turn: while calls end by the thousand, and while nothing else is to do.
BUSY_SECONDS, QUIET_SECONDS = 0.0008, 0.02
# Of running calls, how many tell how far they are.
SAYING = 32
_EXACT = 2**53
_CHUNK = 32
Texts = list[list[Any]]
Part = tuple[dict[str, Any], list[Any]]


class Rows:
    """The rows of one batch. All methods but `texts_of` are called on the stage's thread."""

    def __init__(self, batch: BatchLike) -> None:
        import numpy

        self._np = numpy
        self._batch = batch
        self._count = len(batch)
        self._states: Any = None
        self._attempts: Any = None
        self._workers = 0
        self._numbers = [_numbers(numpy, values) for _, values in batch.parameters]
        self._text_columns = [place for place, numbers in enumerate(self._numbers) if numbers is None]
        self._next_parameters = 0
        self._waiting: deque[int] = deque()
        self._said: dict[int, str] = {}

    @property
    def begun(self) -> bool:
        """Whether all rows have been sent once."""
        return self._states is not None

    @property
    def behind(self) -> bool:
        """Whether text is still to be sent."""
        return bool(self._waiting) or (self._next_parameters < self._count and bool(self._text_columns))

    def whole(self) -> Part:
        """All rows: numbers now, text as it comes."""
        self._remember()
        self._next_parameters, self._workers = 0, 0
        self._waiting.clear()
        self._said.clear()
        part, buffers = self._pack(None, QUIET_SECONDS)
        part["parameters"] = [[name, numbers is not None] for (name, _), numbers in self._labelled()]
        return part, buffers + [memoryview(numbers) for numbers in self._numbers if numbers is not None]

    def changes(self) -> Part | None:
        """Rows that have changed, with the text that fits in; None when there is neither."""
        before = self._states, self._attempts
        self._remember()
        changed = self._np.flatnonzero((self._states != before[0]) | (self._attempts != before[1]))
        if not len(changed) and not self.behind:
            says = self._says()
            return ({"count": 0, "numbers": False, "texts": says, "index": True}, []) if says else None
        return self._pack(changed.astype("<u4"), BUSY_SECONDS if len(changed) > 100 else QUIET_SECONDS)

    def texts_of(self, indices: Sequence[int]) -> Texts:
        """The text of these rows."""
        texts = [self._parameter_texts(place, indices) for place in self._text_columns]
        ended = [index for index in indices if self._batch.data.states[index] >= DONE]
        return [*texts, [RESULT, ended, [self._result_text(index) for index in ended]]]

    def _labelled(self) -> Iterable[Any]:
        return zip(self._batch.parameters, self._numbers, strict=True)

    def _remember(self) -> None:
        """States first: whoever sees a call as ended finds everything else in place."""
        data = self._batch.data
        self._states = self._np.frombuffer(bytes(data.states), dtype="u1")
        self._attempts = self._np.frombuffer(bytes(data.attempts), dtype="u1")

    def _pack(self, index: Any, seconds: float) -> Part:
        """Of the rows in `index`, or of all for None."""
        np, data = self._np, self._batch.data
        chosen = slice(None) if index is None else index
        workers = np.array(np.frombuffer(data.workers, dtype="u2")[chosen])
        started, finished = (self._since(times, chosen) for times in (data.started, data.finished))
        states = self._states[chosen]
        columns = [states, self._attempts[chosen], workers, started, finished]
        places = range(self._count) if index is None else index.tolist()
        values = data.values if index is None else [data.values[place] for place in places]
        results = _numbers(np, values, some=True)
        if results is None:
            self._waiting.extend(place for place, state in zip(places, states.tolist(), strict=True) if state >= DONE)
        else:
            columns.append(results)
            self._waiting.extend(self._among(index, (states == FAILED) | (states == LOST)))
        part: dict[str, Any] = {"count": len(states), "numbers": results is not None, "index": index is not None}
        if len(data.worker_names) != self._workers:
            self._workers = len(data.worker_names)
            part["workers"] = list(data.worker_names)
        part["texts"] = [*self._texts(seconds), *self._says()]
        whole = columns if index is None else [index, *columns]
        return part, [memoryview(np.ascontiguousarray(column)) for column in whole]

    def _among(self, index: Any, wanted: Any) -> list[int]:
        found: list[int] = (self._np.flatnonzero(wanted) if index is None else index[wanted]).tolist()
        return found

    def _since(self, times: Any, chosen: Any) -> Any:
        """Seconds since the batch began; NaN for none."""
        moments = self._np.frombuffer(times, dtype="f8")[chosen]
        return self._np.where(moments == 0.0, self._np.nan, moments - self._batch.created_at)

    def _texts(self, seconds: float) -> Texts:
        """As much text as can be made in so many seconds."""
        end = time.thread_time() + seconds
        texts: Texts = []
        while self._waiting and time.thread_time() < end:
            ended = [self._waiting.popleft() for _ in range(min(_CHUNK, len(self._waiting)))]
            texts.append([RESULT, ended, [self._result_text(index) for index in ended]])
        while self._text_columns and self._next_parameters < self._count and time.thread_time() < end:
            first = self._next_parameters
            self._next_parameters = min(self._count, first + _CHUNK)
            indices = list(range(first, self._next_parameters))
            texts += [self._parameter_texts(place, indices) for place in self._text_columns]
        return texts

    def _parameter_texts(self, place: int, indices: Sequence[int]) -> list[Any]:
        values = self._batch.parameters[place][1]
        return [place, list(indices), [short_repr(values[index]) for index in indices]]

    def _result_text(self, index: int) -> str:
        data = self._batch.data
        if data.states[index] == DONE:
            return short_repr(data.values[index])
        return short(data.error_text(index) or "", 160)

    def _says(self) -> Texts:
        """What running calls say of themselves, where that is new."""
        data = self._batch.data
        if not data.steps and not data.heard:
            return []
        running = self._np.flatnonzero(self._states == RUNNING)[:SAYING].tolist()
        said = {i: saying({"progress": data.steps.get(i), "output": data.output(i)}) for i in running}
        new = {index: text for index, text in said.items() if text != self._said.get(index, "")}
        self._said = said
        return [[RESULT, list(new), list(new.values())]] if new else []


def _numbers(np: Any, values: Sequence[Any], some: bool = False) -> Any:
    """As float64, where every value is a number, or `some` are and the rest None; else None."""
    kinds = set(map(type, values))
    if not kinds or not kinds <= ({int, float, type(None)} if some else {int, float}) or kinds == {type(None)}:
        return None if not some or kinds - {type(None)} else np.full(len(values), np.nan)
    try:
        array = np.array(values, dtype="f8")
    except OverflowError:
        return None
    if int in kinds and np.nanmax(np.abs(array), initial=0) > _EXACT:
        return None
    if some and float in kinds and any(type(value) is float and value - value != 0 for value in values):
        return None  # a NaN is a result, and here stands for none
    return array
