"""The output of a `%%task` cell: live while the task runs, final when it is over, and what it gives back.

One output is updated in place, by the stage's thread, so that all of it stays in the cell that started it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qnb.codec.variables import Variables
from qnb.message import STATES
from qnb.notebook import words
from qnb.notebook.bundles import woven_html, woven_text
from qnb.notebook.fallback import COLOURS
from qnb.notebook.stage import STAGE
from qnb.session.echo import Echo

if TYPE_CHECKING:
    from qnb.session.future import Future

MISSING = object()
_DIM = "opacity:0.7"
_ENDS = ("done", "failed", "cancelled", "lost")
# Characters shown of a task that runs, and bytes a second of all updates.
_LIVE_CHARACTERS = 8192
_BYTES_A_SECOND = 2_000_000


@dataclass
class Job:
    """A cell that was sent. `before` has what the variables were then that it will give back."""

    name: str
    future: Future
    names: Sequence[str]
    before: dict[str, Any]
    ships: str
    place: tuple[str, str]  # the name of its file in tracebacks, and that of the cell
    remarks: list[str] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)
    delivered: bool = False
    replaced: bool = False
    over_at: float | None = None

    def deliver(self, namespace: dict[str, Any]) -> None:
        """Put back what it gives; on the kernel's main thread, between cells or where the user waits for it."""
        if self.delivered or not self.future.done():
            return
        self.delivered = True
        if self.replaced or self.future.state != "done":
            return
        values: Variables = self.future.result(0)
        back, kept = [], []
        for name, value in values.items():
            if namespace.get(name, MISSING) is self.before.get(name, MISSING):
                namespace[name] = value
                back += [] if isinstance(value, ModuleType) else [name]  # that an import is there is no news
            elif namespace.get(name) is not value:
                kept.append(name)
        if back:
            self.remarks.append(f"{', '.join(back)} {'is' if len(back) == 1 else 'are'} in the notebook")
        if kept:
            self.remarks.append(
                f"{', '.join(kept)} changed in the notebook meanwhile and {'is' if len(kept) == 1 else 'are'} left so: "
                f"the task's is _task.result()[{kept[0]!r}]"
            )
        self.remarks += [f"{name} is not brought back: {why}" for name, why in values.missing.items()]
        if absent := [name for name in self.names if name not in values and name not in values.missing]:
            self.remarks.append(f"{', '.join(absent)} had no value at the end of the cell")
        self.before = {}
        STAGE.wake()


class Waiting(Echo):
    """Who waits for the Future of a cell in a later one gets its variables at once; its output stays where it is."""

    def __init__(self, deliver: Callable[[], None]) -> None:
        super().__init__()
        self._deliver = deliver

    def look(self, future: Future) -> None:
        if future.done() and threading.current_thread() is threading.main_thread():
            self._deliver()


class CellOutput:
    """One job on stage. `when_over` has its variables delivered by the main thread."""

    def __init__(self, job: Job, publisher: Any, display_id: str, when_over: Callable[[], None]) -> None:
        self.job = job
        self._publisher = publisher
        self._id = display_id
        self._when_over = when_over
        self._asked = False
        self._last: object = None
        self._not_before = 0.0
        self.publish(update=False)

    def draw(self) -> bool:
        job = self.job
        if job.future.done() and not self._asked:
            self._asked = True
            job.over_at = time.time()
            self._when_over()
        if time.monotonic() >= self._not_before or job.delivered:
            self.publish()
        return not job.delivered or self._last != self._state()

    def due(self) -> float | None:
        return max(self._not_before, time.monotonic() + 0.1)

    def publish(self, update: bool = True) -> None:
        """Bring the output up to date, if anything has changed."""
        state = self._state()
        if state == self._last:
            return
        self._last = state
        data = {"text/plain": self._text(), "text/html": self._html()}
        self._not_before = time.monotonic() + sum(map(len, data.values())) / _BYTES_A_SECOND
        self._publisher.publish(data=data, transient={"display_id": self._id}, update=update)

    def _state(self) -> object:
        future, job = self.job.future, self.job
        seconds = int(self._elapsed())
        return (
            future.state, len(future.output), future.output[-100:], future.displays, future.progress, job.replaced,
            tuple(job.remarks), None if future.done() else seconds if seconds < 60 else seconds // 10,
        )  # fmt: skip

    def _elapsed(self) -> float:
        return (self.job.over_at or time.time()) - self.job.created_at

    def _head(self) -> tuple[str, str]:
        """The state for its colour, and the line that says how it is."""
        job, future = self.job, self.job.future
        state = "cancelled" if job.replaced else future.state
        parts = [state, words.duration(self._elapsed()) if future.done() or self._elapsed() >= 1 else ""]
        if job.replaced:
            parts[0] = "replaced by a later run of this cell"
        elif (progress := future.progress) is not None and not future.done():
            done, total, note = progress
            parts += [f"{done:g} of {total:g}" if total is not None else f"{done:g}", note]
        return state, " · ".join(part for part in parts if part)

    def _output(self) -> tuple[str, list[Any]]:
        future = self.job.future
        output, displays = future.output, future.displays
        if future.done() or len(output) <= _LIVE_CHARACTERS:
            return output, displays
        cut = len(output) - _LIVE_CHARACTERS
        return "…\n" + output[cut:], displays

    def _traceback(self) -> str:
        file, cell = self.job.place
        future = self.job.future
        if self.job.replaced or not future.done() or future.state in ("done", "cancelled"):
            return ""
        return future.traceback.replace(f'File "{file}"', cell) or f"{future.exception(0)}\n"

    def _text(self) -> str:
        job = self.job
        lines = [f"{job.name}  {self._head()[1]}", job.ships, woven_text(*self._output()), self._traceback()]
        return "\n".join(line.rstrip("\n") for line in [*lines, *job.remarks] if line)

    def _html(self) -> str:
        job, (state, head) = self.job, self._head()
        colour = COLOURS.get(state, COLOURS[STATES[1]])
        style = f"display:inline-block;width:9px;height:9px;border-radius:50%;background-color:{colour}"
        dot = f'<span style="{style}"></span>'
        parts = [f"<div>{dot} <strong>{escape(job.name)}</strong> &nbsp; {escape(head)}</div>"]
        progress = job.future.progress
        if progress is not None and progress[1] and state not in _ENDS:
            share = max(0.0, min(100.0, 100 * progress[0] / progress[1]))
            style = f"height:6px;width:{share:.1f}%;border-radius:3px;background-color:{COLOURS['done']}"
            bar = f'<div style="{style}"></div>'
            parts.append(f'<div style="max-width:30em;margin:4px 0;background-color:rgba(128,134,140,0.2)">{bar}</div>')
        parts.append(f'<div style="{_DIM}">{escape(job.ships)}</div>')
        parts.append(woven_html(*self._output()))
        if traceback := self._traceback():
            style = f"border-left:3px solid {COLOURS['failed']};padding-left:8px;white-space:pre-wrap;margin:4px 0"
            parts.append(f'<pre style="{style};background-color:transparent">{escape(traceback)}</pre>')
        parts += [f'<div style="{_DIM}">{escape(remark)}</div>' for remark in job.remarks]
        return f'<div style="line-height:1.5;font-size:13px">{"".join(parts)}</div>'
