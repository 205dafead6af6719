"""A Batch at one moment, small enough to send and to print: what every view and fallback draws from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qnb.codec.output import last_line
from qnb.message import STATES
from qnb.notebook import words

if TYPE_CHECKING:
    from qnb.session.columns import Columns

ENDED = ("done", "failed", "lost", "cancelled")
# The order in which states stand in a bar and a legend: ended, under way, still to come.
SHOWN = (*ENDED, "running", "retrying", "queued", "pending")
# What `Batch.columns` has after the parameters.
OUTCOME_COLUMNS = 12
# A batch this small is shown whole; of a larger one, so many rows.
FEW_ROWS, LAST_ROWS, LAST_RUNNING = 12, 8, 2
_UNDER_WAY = ("running", "retrying")


class BatchLike(Protocol):
    """What of a `Batch` a view needs. Every member may be called from any thread."""

    run: str
    name: str
    created_at: float
    data: Columns
    parameters: list[tuple[str, list[Any]]]

    def __len__(self) -> int: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def over(self) -> bool: ...
    @property
    def finished_at(self) -> float | None: ...
    @property
    def columns(self) -> Sequence[str]: ...
    def rate(self) -> float: ...
    def eta(self) -> float | None: ...
    def recent(self, count: int) -> list[int]: ...
    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]: ...
    def failures_grouped(self) -> Sequence[tuple[str, int, str]]: ...
    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]: ...
    def cancel(self) -> object: ...
    def retry(self) -> BatchLike: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One call. `runtime` is in seconds, None before the start.

    `result` has the error of one that failed, and of one that runs its progress and the last line that it printed.
    """

    index: int
    state: str
    parameters: tuple[str, ...]
    result: str
    runtime: float | None
    attempts: int
    worker: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A Batch at one moment. Times in seconds; `failures` has (class, how many, one message), most first."""

    name: str
    run: str
    total: int
    parameters: tuple[str, ...]
    counts: Mapping[str, int]
    rate: float
    eta: float | None
    elapsed: float
    over: bool
    rows: tuple[Row, ...]
    failures: tuple[tuple[str, int, str], ...] = field(default=())

    @property
    def ended(self) -> int:
        return sum(self.counts.get(state, 0) for state in ENDED)

    def present(self) -> list[tuple[str, int]]:
        """(state, calls) of the states that any call is in, in the order in which they are shown."""
        return [(state, self.counts[state]) for state in SHOWN if self.counts.get(state, 0)]

    def progress(self) -> str:
        """How far it is, in words."""
        if self.over and self.ended == self.total:
            return f"{words.count(self.total)} {'call' if self.total == 1 else 'calls'}"
        return f"{words.count(self.ended)} of {words.count(self.total)} · {words.percent(self.ended, self.total)}"

    def pace(self) -> str:
        """How fast it goes or went, and how long yet."""
        if not self.over:
            parts = [words.rate(self.rate), words.duration(self.elapsed), words.left(self.eta)]
        else:
            average = self.total / self.elapsed if self.elapsed > 0 and self.total > 1 else 0.0
            parts = [f"in {words.duration(self.elapsed)}", words.rate(average)]
        return " · ".join(part for part in parts if part)

    def rest(self) -> str:
        """What the rows leave out, in words."""
        if len(self.rows) == self.total:
            return ""
        return f"{len(self.rows)} of {words.count(self.total)} rows, the last that changed"

    def wire(self) -> dict[str, Any]:
        """As widgets/src/lib/protocol.ts reads it, without kind, number and rows."""
        return pulse(self) | {
            "name": self.name,
            "run": self.run,
            "total": self.total,
            "parameters": list(self.parameters),
            "over": self.over,
            "failures": [list(group) for group in self.failures],
        }


def pulse(snapshot: Snapshot) -> dict[str, Any]:
    """The part of a message that changes all the time."""
    return {
        "counts": [snapshot.counts.get(state, 0) for state in STATES],
        "rate": round(snapshot.rate, 3),
        "eta": None if snapshot.eta is None else round(snapshot.eta, 1),
        "elapsed": round(snapshot.elapsed, 3),
    }


def take(batch: BatchLike, failures: Sequence[tuple[str, int, str]] | None = None, rows: bool = True) -> Snapshot:
    """The batch as it is now. `failures` spares grouping them anew where they are known; `rows` may be left out."""
    over = batch.over  # first: whoever sees it true must see the last outcome too
    now = time.time()
    finished = batch.finished_at if over else None
    parameters = tuple(batch.columns[:-OUTCOME_COLUMNS])
    counts = dict(batch.counts)
    if failures is None:
        failures = batch.failures_grouped() if counts.get("failed") or counts.get("lost") else ()
    return Snapshot(
        name=batch.name,
        run=batch.run,
        total=len(batch),
        parameters=parameters,
        counts=counts,
        rate=_number(batch.rate()) or 0.0,
        eta=None if over else _number(batch.eta()),
        elapsed=max(0.0, (finished or now) - batch.created_at),
        over=over,
        rows=tuple(_row(index, row, parameters, now) for index, row in _last_rows(batch)) if rows else (),
        failures=tuple((kind, number, short(message, 160)) for kind, number, message in failures),
    )


def _last_rows(batch: BatchLike) -> list[tuple[int, dict[str, Any]]]:
    """The calls that changed last, in the order of their numbers: they move little from one look to the next."""
    total = len(batch)
    if total <= FEW_ROWS:
        indices = list(range(total))
        return list(zip(indices, batch.rows(indices), strict=True))
    shown: dict[int, dict[str, Any]] = {}
    ended = batch.recent(LAST_ROWS)[::-1]
    # What runs is mostly just ahead of what ended.
    ahead = range(max(ended, default=-1) + 1, total)[: 2 * LAST_ROWS]
    coming = dict(zip(ahead, batch.rows(ahead), strict=True))
    running = [index for index, row in coming.items() if row["state"] in _UNDER_WAY]
    for index in running[: max(LAST_RUNNING, LAST_ROWS - len(ended))]:
        shown[index] = coming[index]
    room = LAST_ROWS - len(shown)
    shown.update(zip(ended[:room], batch.rows(ended[:room]), strict=True))
    for index in ahead:
        if len(shown) < LAST_ROWS:
            shown.setdefault(index, coming[index])
    return sorted(shown.items())


def _row(index: int, row: Mapping[str, Any], parameters: Sequence[str], now: float) -> Row:
    state = str(row["state"])
    bad = state in ("failed", "lost", "retrying")
    result = row["error"] if bad else row["result"]
    runtime, started = _number(row["runtime_s"]), _number(row["started_at"])
    if state == "running" and runtime is None and started is not None:
        runtime = max(0.0, now - started)
    return Row(
        index=index,
        state=state,
        parameters=tuple(_text(row[name]) for name in parameters),
        result=_text(result) if bad or state == "done" else saying(row) if state == "running" else "",
        runtime=runtime,
        attempts=int(_number(row["attempts"]) or 0),
        worker=_text(row["worker"]),
    )


def saying(row: Mapping[str, Any]) -> str:
    """What a running call says: how far it is, and the last line it has printed."""
    done, total, note = row.get("progress") or (None, None, "")
    far = "" if done is None else f"{_text(done)} of {_text(total)}" if total is not None else _text(done)
    return short(" · ".join(part for part in (far, note, last_line(row.get("output") or "")) if part), 80)


def _number(value: Any) -> float | None:
    """A finite float, whatever stands for none."""
    try:
        number = value.timestamp() if hasattr(value, "timestamp") else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """A cell: strings as they are, floats in six digits, all on one short line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # a user's own __repr__ may do anything
        text = f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    return short(text, 80)


def short(text: str, width: int) -> str:
    """On one line, of so many characters at most."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"
