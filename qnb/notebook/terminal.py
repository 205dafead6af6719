"""A batch followed where there is no notebook: by rich where it is installed, else by tqdm, else in plain text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol, TextIO

from qnb.notebook import words
from qnb.notebook.fallback import COLOURS, text_bar
from qnb.notebook.snapshot import ENDED, BatchLike, Snapshot, take

LOOK_SECONDS = 0.1
LINE_SECONDS = 1.0
_BAR = 30
_FAILURES = 3


class Waiting(BatchLike, Protocol):
    """A batch that one can wait for."""

    def wait(self, timeout: float | None = None) -> bool: ...


class Screen(Protocol):
    """Where progress is drawn."""

    def draw(self, snapshot: Snapshot) -> None: ...
    def close(self) -> None: ...


def follow(batch: Waiting, timeout: float | None = None, file: TextIO | None = None) -> bool:
    """Wait for a batch and show its progress meanwhile; False when it is not over after `timeout` seconds.

    On a terminal by rich, tqdm or a line drawn over and over; in a file or a pipe a line each second.
    """
    out = file or sys.stderr
    live = out.isatty()
    end = None if timeout is None else time.monotonic() + timeout
    with closing(_screen(out) if live else _Lines(out)) as screen:
        while True:
            left = float("inf") if end is None else max(0.0, end - time.monotonic())
            over = batch.wait(min(left, LOOK_SECONDS if live else LINE_SECONDS))
            if over or live or left > 0:
                screen.draw(take(batch))
            if over or left <= 0:
                return over


def _screen(out: TextIO) -> Screen:
    for screen in (_Rich, _Tqdm):
        try:
            return screen(out)
        except ImportError:  # it is not installed
            continue
    return _Line(out)


def progress_line(snapshot: Snapshot) -> str:
    """A batch under way, in one line."""
    parts = [f"[{text_bar(snapshot, _BAR)}]", snapshot.progress(), snapshot.pace(), *_failed(snapshot)]
    return "  ".join(part for part in parts if part)


def _failed(snapshot: Snapshot) -> list[str]:
    bad = [(state, snapshot.counts.get(state, 0)) for state in ("failed", "lost")]
    return [f"{words.count(number)} {state}" for state, number in bad if number]


class _Lines:
    """For a file or a pipe."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def draw(self, snapshot: Snapshot) -> None:
        if not snapshot.over:
            print(progress_line(snapshot), file=self._out, flush=True)

    def close(self) -> None:
        """What was printed stays."""


class _Line:
    """For a terminal without rich and tqdm."""

    def __init__(self, out: TextIO) -> None:
        import shutil

        self._out = out
        self._width = shutil.get_terminal_size((100, 24)).columns - 1

    def draw(self, snapshot: Snapshot) -> None:
        print(f"\r{progress_line(snapshot)[: self._width]}\033[K", end="", file=self._out, flush=True)

    def close(self) -> None:
        print("\r\033[K", end="", file=self._out, flush=True)


class _Tqdm:
    def __init__(self, out: TextIO) -> None:
        from tqdm.std import tqdm

        self._make: Callable[..., Any] = tqdm
        self._out = out
        self._bar: Any = None

    def draw(self, snapshot: Snapshot) -> None:
        if self._bar is None:
            self._bar = self._make(total=snapshot.total, desc=snapshot.name, file=self._out, unit="call", leave=False)
        self._bar.n = snapshot.ended
        self._bar.set_postfix_str(", ".join(_failed(snapshot)), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Rich:
    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live: Any = Live(console=Console(file=out), auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, snapshot: Snapshot) -> None:
        self._live.update(_rich_lines(snapshot, self._live.console.width), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _rich_lines(snapshot: Snapshot, width: int) -> Any:
    """The bar by state, the counts, and the failures grouped; what the view in a notebook says."""
    from rich.text import Text

    lines = Text(no_wrap=True, overflow="ellipsis")
    lines.append(snapshot.name, "bold").append(f"  {snapshot.progress()}  ").append(snapshot.pace(), "dim").append("\n")
    length, passed, drawn = max(10, min(60, width - 2)), 0, 0
    for state, number in snapshot.present():
        passed += number
        cells = passed * length // max(1, snapshot.total) - drawn
        ended = state in ENDED or state in ("running", "retrying")
        lines.append(("━" if ended else "─") * cells, _colour(state))
        drawn += cells
    lines.append("\n")
    for state, number in snapshot.present():
        lines.append("● ", _colour(state)).append(f"{words.count(number)} {state}   ")
    for kind, number, message in snapshot.failures[:_FAILURES]:
        lines.append("\n").append(kind, _colour("failed")).append(f" × {words.count(number)}: {message}")
    return lines


def _colour(state: str) -> str:
    colour = COLOURS[state]
    return colour if colour.startswith("#") else "dim"


def show(batch: Any) -> None:
    """Show a batch: live in a notebook, which goes on at once; elsewhere until it is over."""
    if in_notebook():
        from qnb.notebook.batch_view import display

        batch.session.flush()
        display(batch)
    else:
        follow(batch)


def wait_showing(batch: Any, timeout: float | None) -> bool:
    """Wait for a batch, as `Batch.wait`, and show its progress."""
    if not in_notebook():
        return follow(batch, timeout)
    show(batch)
    over: bool = batch.wait(timeout)
    return over


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    from qnb.session.echo import in_kernel

    return in_kernel()
