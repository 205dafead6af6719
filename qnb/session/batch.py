"""Many calls of one function: a map, a starmap or a sweep."""

from __future__ import annotations

import array
import logging
import operator
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from itertools import chain
from threading import Condition
from typing import TYPE_CHECKING, Any, overload

from qnb.codec.outcomes import spans_of
from qnb.codec.references import Referable
from qnb.message import CANCELLED, DONE, FAILED, LOST, QUEUED, RUNNING, STATES, Function, Outcomes, Progress, ValueOf
from qnb.session.columns import Columns
from qnb.session.future import Future, is_small, to_refer
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.session import Session

log = logging.getLogger(__name__)

_RATE_SECONDS = 5.0
_NOT_OVER = re.compile(b"[%s]+" % re.escape(bytes(range(DONE))))


class Batch(Referable):
    """Calls of one run, in order. Iterating gives their values as they become due.

    `len`, `batch[i]` (a Future), `.results()`, `.as_completed()`, `.wait()`, `.cancel()`, `.retry()`,
    `.counts`, `.errors`, `.df`, and `await batch`. In a notebook it displays itself live.
    """

    def __init__(
        self,
        session: Session,
        run: str,
        function: Function,
        parameters: Sequence[tuple[str, list[Any]]],
        count: int,
        options: TaskOptions,
    ) -> None:
        self.session = session
        self.run = run
        self.name = options.name or function.name
        self.function = function
        self.parameters = list(parameters)
        self.options = options
        self.data = Columns(count)
        self.created_at = time.time()
        self.finished_at: float | None = None if count else self.created_at
        self.version = 0
        self.timeout: float | None = None
        self.names: tuple[str, ...] = ()
        self.source: str | None = None  # of a run that was attached
        self.incomplete = False  # its arguments were not kept
        self.by_name = False  # of a function whose workers may open no pickle
        self._left = count
        self._small: bool | None = None  # all its values, once they are here
        self._unsent: set[int] = set()  # calls that failed here, and that nobody else will ever hear of
        self._condition = Condition()
        self._futures: dict[int, Future] = {}
        self._listeners: list[Callable[[], None]] = []
        self._ended = array.array("I")  # call numbers in the order in which they ended
        self._progress: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._cursor: Iterator[Any] | None = None

    # Its calls -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.data.count

    @overload
    def __getitem__(self, index: int) -> Future: ...
    @overload
    def __getitem__(self, index: slice) -> list[Future]: ...

    def __getitem__(self, index: int | slice) -> Future | list[Future]:
        """The Future of call `index`; negative counts from the end; a slice gives a list of them."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"call {index} of a batch of {len(self)}")
        index %= len(self)
        with self._condition:
            future = self._futures.get(index)
            if future is None:
                future = self._futures[index] = Future(self, index)
                self._update(future, index)
        return future

    def __iter__(self) -> Iterator[Any]:
        """The values in order, each as soon as it is there; a failed call raises when its turn comes.

        Raises TimeoutError when a value is not there `timeout` seconds after the map was called.
        """
        deadline = None if self.timeout is None else self.created_at + self.timeout
        for index in range(len(self)):
            left = None if deadline is None else deadline - time.time()
            yield self._value(index, left)

    def __next__(self) -> Any:
        # concurrent.futures' map gives an iterator; `next(session.map(…))` works here too.
        self._cursor = self._cursor or iter(self)
        return next(self._cursor)

    def _value(self, index: int, timeout: float | None) -> Any:
        __tracebackhide__ = True
        states = self.data.states
        left = None if timeout is None else max(0.0, timeout)
        if states[index] < DONE and not self._wait_for(lambda: states[index] >= DONE, left):
            raise TimeoutError(f"call {index} is not over after {self.timeout} s; it is {STATES[states[index]]}")
        if states[index] == DONE:
            return self.data.values[index]
        error = self.data.error(index)
        raise error or CancelledError(f"task {self.run}:{index} was cancelled")

    def results(self, timeout: float | None = None) -> list[Any]:
        """All values in order, once all calls are over; raises the first failed call's exception.

        Raises TimeoutError when they are not over within `timeout` seconds.
        """
        __tracebackhide__ = True
        if not self.wait(timeout):
            raise TimeoutError(f"{self._left:,} of {len(self):,} calls are not over after {timeout:g} s")
        if self.data.states.count(DONE) == len(self):
            return list(self.data.values)
        values = []
        for index in range(len(self)):
            values.append(self._value(index, None))  # noqa: PERF401 - a comprehension is a frame more in tracebacks
        return values

    def as_completed(self, timeout: float | None = None) -> Iterator[Future]:
        """The futures in the order in which their calls end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = self._ended
        for given in range(len(self)):
            if given == len(ended):
                left = None if deadline is None else deadline - time.monotonic()
                if not self._wait_for(partial(self._more_than, given), left):
                    raise TimeoutError(f"{len(self) - given:,} of {len(self):,} calls are not over")
            yield self[ended[given]]

    def _more_than(self, count: int) -> bool:
        return len(self._ended) > count

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> bool:
        """Wait until all calls are over; False when they are not after `timeout` seconds.

        progress: show it meanwhile: the live view in a notebook; in a terminal a bar of rich, of tqdm or of text.
        """
        if progress and not self.over:
            from qnb.notebook.terminal import wait_showing

            return wait_showing(self, timeout)
        return self.over or self._wait_for(lambda: self._left == 0, timeout)

    def _wait_for(self, done: Callable[[], bool], timeout: float | None) -> bool:
        try:
            return self.session.wait_for(done, self._condition, timeout)
        except KeyboardInterrupt:
            self.session.interrupted(self.cancel, f"run {self.run}")
            raise

    def __await__(self) -> Generator[Any, None, list[Any]]:
        import asyncio

        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            if self.over:
                loop.call_soon_threadsafe(done.set)

        self.session.flush()
        stop = self.on_change(tell)
        try:
            if not self.over:
                yield from done.wait().__await__()
        finally:
            stop()
        return self.results(timeout=0)

    def reference(self, backend: Any) -> ValueOf | None:
        """As an argument of another call: what stands for the list of its values."""
        if self._unsent:
            return self[min(self._unsent)].reference(backend)  # which says so
        here = self.data.states.count(DONE) == len(self)
        if here and self._small is None:
            self._small = is_small(self.value())
        if not len(self) or (here and self._small) or not to_refer(self, backend, here, f"run {self.run}"):
            return None
        return ValueOf(self.run, 0, len(self), False, self.function.name)

    def value(self) -> list[Any]:
        """Its values, which are here."""
        return list(self.data.values)

    def cancel(self, terminate: bool = False) -> int:
        """Cancel what is not over; calls that run go on unless `terminate`. How many were cancelled."""
        before = self.data.states.count(CANCELLED)
        spans = [(self.run, first, count) for first, count in self.missing()]
        if spans:
            self.session.cancel_calls(spans, terminate=terminate)
        return self.data.states.count(CANCELLED) - before

    def retry(self) -> Batch:
        """A new Batch of the calls that failed or were lost, with the same arguments."""
        return self.session.repeat(self, [i for i, state in enumerate(self.data.states) if state in (FAILED, LOST)])

    # What has become of them ---------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """State → number of calls; a state without calls counts 0."""
        states = self.data.states
        return Counter({name: n for code, name in enumerate(STATES) if (n := states.count(code))})

    @property
    def over(self) -> bool:
        """Whether every call has ended."""
        return self._left == 0

    @property
    def errors(self) -> pd.DataFrame:
        """Failures grouped by exception: columns error, count, example, first (a call number)."""
        import pandas as pd

        return pd.DataFrame(self._grouped(), columns=["error", "count", "example", "first"])

    def failures_grouped(self) -> list[tuple[str, int, str]]:
        """(exception, how often, an example of its message), most frequent first."""
        return [(kind, count, example) for kind, count, example, _ in self._grouped()]

    def _grouped(self) -> list[tuple[str, int, str, int]]:
        groups: dict[str, list[Any]] = {}
        for index in sorted({*self.data.failures, *self.data.errors}):
            kind, _, text = (self.data.error_text(index) or "").partition(": ")
            groups.setdefault(kind, [0, text, index])[0] += 1
        rows = [(kind, count, text, index) for kind, (count, text, index) in groups.items()]
        return sorted(rows, key=lambda row: (-row[1], row[3]))

    def rate(self) -> float:
        """Calls ended a second, over the last seconds; over the whole time once all are over."""
        ended = len(self) - self._left
        if self.finished_at is not None:
            return ended / max(1e-9, self.finished_at - self.created_at)
        now = time.monotonic()
        since, before = self._progress[0]
        return (ended - before) / max(0.001, now - since)

    def eta(self) -> float | None:
        """Seconds until the end, when it goes on like this; None when nothing has ended lately."""
        rate = self.rate()
        return None if self.over or rate <= 0 else self._left / rate

    def recent(self, count: int) -> list[int]:
        """The calls that ended last, newest last."""
        return list(self._ended[-count:]) if count > 0 else []

    @property
    def columns(self) -> list[str]:
        """The names of `df`'s columns."""
        from qnb.session.frame import column_names

        return column_names(self)

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows of the table as they are shown: values as short text."""
        from qnb.session.frame import display_rows

        return display_rows(self, indices)

    @property
    def df(self) -> pd.DataFrame:
        """A DataFrame of now; index = call number.

        Columns: the parameters, then result state error worker attempts queued_at started_at finished_at wait_s
        runtime_s output task_id. Times are UTC, durations float seconds, `state` a category.
        """
        return self.to_df()

    def to_df(self, expand: bool = False) -> pd.DataFrame:
        """The same; `expand` spreads results that are dicts into columns of their own."""
        from qnb.session.frame import make_frame

        return make_frame(self, expand=expand)

    # How it is shown -----------------------------------------------------------------------------------------

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back, from any thread, whenever something changes; returns what ends it."""
        self._listeners.append(callback)

        def stop() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return stop

    def __repr__(self) -> str:
        from qnb.notebook.fallback import batch_text

        return batch_text(self)

    def _repr_html_(self) -> str:
        from qnb.notebook.fallback import batch_html

        return batch_html(self)

    def _ipython_display_(self) -> None:
        from qnb.notebook.batch_view import display

        self.session.flush()
        display(self)

    def _display_(self) -> object:
        """As marimo asks for it."""
        from qnb.notebook.batch_view import BatchView

        self.session.flush()
        return BatchView(self).widget()

    # What the collector does with it -------------------------------------------------------------------------

    def sent(self, first: int, count: int, at: float) -> None:
        """These calls have been published."""
        self.data.queue(first, count, at, QUEUED)

    def absorb(self, outcomes: Outcomes) -> int:
        """Take outcomes in; how many were new."""
        with self._condition:
            new = self.data.fill(outcomes, self.session.fetch)
            ended = sum(count for _, count in new)
            self._count_down(ended)
        if outcomes.times and ended:
            data, last = self.data, outcomes.first + outcomes.count - 1
            self.session.learn(self.function.hash, data.finished[last] - data.started[outcomes.first], outcomes.count)
        self._changed(new)
        return ended

    def progress(self, progress: Progress) -> None:
        """Calls run, or will be tried again."""
        with self._condition:
            for index in progress.indices:
                if self.data.states[index] < DONE:
                    self.data.states[index] = progress.state
                    if progress.state == RUNNING:
                        self.data.started[index] = progress.at
                        self.data.workers[index] = self.data.worker_number(progress.worker)
                    self.data.attempts[index] = min(progress.attempt, 255)
            if progress.output or progress.steps or progress.displays:
                self.data.hear(progress)
        self._changed([], progress.indices)

    def cancelled(self, first: int, count: int) -> int:
        """These calls will never run; how many were new."""
        return self._close(first, count, CANCELLED, None)

    def fail(self, first: int, count: int, error: BaseException) -> int:
        """These calls could not be sent; how many were new."""
        self._unsent.update(range(first, first + count))
        return self._close(first, count, FAILED, error)

    def _close(self, first: int, count: int, state: int, error: BaseException | None) -> int:
        with self._condition:
            open_calls = [i for i in range(first, first + count) if self.data.states[i] < DONE]
            now = time.time()
            for index in open_calls:
                if error is not None:
                    self.data.errors[index] = error
                self.data.finished[index] = now
                self.data.states[index] = state
            self._count_down(len(open_calls))
        self._changed(spans_of(open_calls))
        return len(open_calls)

    def state(self, index: int) -> int | None:
        """The state of a call; None when there is no such call."""
        return self.data.states[index] if index < len(self) else None

    def missing(self) -> list[tuple[int, int]]:
        """Spans of calls without an outcome."""
        if self.over:
            return []
        return [(m.start(), m.end() - m.start()) for m in _NOT_OVER.finditer(self.data.states)]

    def _count_down(self, ended: int) -> None:
        if ended and self._left == ended:
            self.finished_at = time.time()
        self._left -= ended

    def _changed(self, spans: list[tuple[int, int]], indices: Sequence[int] = ()) -> None:
        now = time.monotonic()
        for first, count in spans:
            self._ended.extend(range(first, first + count))
        if now - self._progress[-1][0] > 0.2:
            self._progress.append((now, len(self) - self._left))
            while len(self._progress) > 2 and now - self._progress[1][0] > _RATE_SECONDS:
                self._progress.popleft()
        if self._futures:
            for index in chain(indices, *(range(first, first + count) for first, count in spans)):
                if (future := self._futures.get(index)) is not None:
                    self._update(future, index)
        self.version += 1
        with self._condition:
            self._condition.notify_all()
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:  # a view's fault, or a loop that is closed: outcomes go on
                log.exception("a listener of batch %s", self.run)

    def _update(self, future: Future, index: int) -> None:
        """Bring one future up to what the columns say."""
        future._unsent = index in self._unsent
        state = self.data.states[index]
        data = self.data
        if data.heard or data.outputs or data.steps or data.displays:
            future._said(data.outputs.get(index, ""), data.heard.get(index), data.steps.get(index))
            future._displays = data.displays.get(index, [])
        if state == DONE:
            future._end_done(self.data.values[index])
        elif state == CANCELLED:
            future._end_cancelled(self.data.error(index))
        elif state > DONE:
            failure = self.data.failures.get(index)
            error = self.data.error(index) or RuntimeError("failed without an exception")
            future._end_failed(state, error, failure.traceback if failure else "")
        elif state >= RUNNING and not future.done():
            future._start(state)
        else:
            future._code = state
