"""A Batch as text and as HTML that needs nothing: for terminals, saved notebooks, code hosts, readers without widgets.

The HTML has inline styles only, no script and no style sheet; colours are such as can be read on light and on dark, and
every number is there as text too, for those who drop styles altogether.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from html import escape

from qnb.notebook.snapshot import BatchLike, Row, Snapshot, short, take
from qnb.notebook.words import count, duration

# The same as in widgets/src/batch.css.
COLOURS = {
    "done": "#2f9e63",
    "running": "#3d87e0",
    "retrying": "#e0962e",
    "failed": "#d64545",
    "lost": "#9c4bb8",
    "cancelled": "#8b8f94",
    "queued": "rgba(128,134,140,0.4)",
    "pending": "rgba(128,134,140,0.15)",
}
_TRACK = "rgba(128,134,140,0.15)"
_LINE = "1px solid rgba(128,134,140,0.35)"
_DIM = "opacity:0.7"
_NO_FILL = "background-color:transparent"  # Jupyter stripes tables
_CODE = "font-family:var(--jp-code-font-family,monospace)"
_NUMBER = re.compile(r"[-+]?[\d.,_]*\d(e[-+]?\d+)?%?|[-+]?(nan|inf)|", re.IGNORECASE)
_FAILURES = 3
_CELL, _RESULT = 28, 48
_BAR = 40
_MARKS = {"done": "#", "failed": "x", "lost": "x", "cancelled": "-", "running": ">", "retrying": ">"}


def batch_html(batch: BatchLike) -> str:
    """The batch as it is now, as HTML that outlives the kernel."""
    return snapshot_html(take(batch))


def batch_text(batch: BatchLike) -> str:
    """The batch as it is now, as lines of text no wider than the terminal."""
    return snapshot_text(take(batch), shutil.get_terminal_size((100, 24)).columns)


def snapshot_html(snapshot: Snapshot) -> str:
    """A snapshot as HTML."""
    head = (
        f'<div style="padding:2px 0"><strong style="{_CODE}">{escape(snapshot.name)}</strong>'
        f' &nbsp; {escape(snapshot.progress())} &nbsp; <span style="{_DIM}">{escape(snapshot.pace())}</span></div>'
    )
    parts = [head, _bar_html(snapshot), _legend_html(snapshot), _failures_html(snapshot), _table_html(snapshot)]
    if rest := snapshot.rest():
        parts.append(f'<div style="{_DIM};margin-top:4px">{escape(rest)}</div>')
    return f'<div style="padding:6px 8px 8px 0;line-height:1.5;font-size:13px">{"".join(parts)}</div>'


def _bar_html(snapshot: Snapshot) -> str:
    parts = []
    for state, number in snapshot.present():
        width = f"{100 * number / snapshot.total:.3f}%"
        parts.append(f'<div style="float:left;height:10px;width:{width};background-color:{COLOURS[state]}"></div>')
    style = f"height:10px;margin:4px 0 6px;border-radius:5px;overflow:hidden;background-color:{_TRACK}"
    return f'<div style="{style}">{"".join(parts)}</div>'


def _dot(state: str) -> str:
    style = "display:inline-block;width:9px;height:9px;margin-right:6px;border-radius:50%"
    return f'<span style="{style};background-color:{COLOURS[state]}"></span>'


def _legend_html(snapshot: Snapshot) -> str:
    parts = [
        f'<span style="margin-right:16px">{_dot(state)}<b>{count(number)}</b>'
        f' <span style="{_DIM}">{state}</span></span>'
        for state, number in snapshot.present()
    ]
    return f"<div>{' '.join(parts)}</div>"


def _failures_html(snapshot: Snapshot) -> str:
    lines = [
        f'<div><b style="color:{COLOURS["failed"]}">{escape(kind)}</b>'
        f' <span style="{_DIM};margin:0 10px 0 6px">× {count(number)}</span>'
        f' <span style="{_CODE};font-size:0.92em">{escape(message)}</span></div>'
        for kind, number, message in snapshot.failures[:_FAILURES]
    ]
    if more := _more_failures(snapshot):
        lines.append(f"<div>{more}</div>")
    style = f"margin-top:6px;padding-left:8px;border-left:3px solid {COLOURS['failed']}"
    return f'<div style="{style}">{"".join(lines)}</div>' if lines else ""


def _more_failures(snapshot: Snapshot) -> str:
    more = len(snapshot.failures) - _FAILURES
    return f"and {more} more {'kind' if more == 1 else 'kinds'} of failure" if more > 0 else ""


def _table_html(snapshot: Snapshot) -> str:
    if not snapshot.rows:
        return ""
    heads = headings(snapshot)
    lines = [cells(row) for row in snapshot.rows]
    right = _numeric(heads, lines)
    align = ["right" if number else "left" for number in right]
    base = f"border:0;border-bottom:{_LINE};padding:2px 20px 2px 0;line-height:1.6;white-space:nowrap;{_NO_FILL}"
    top = "".join(
        f'<th scope="col" style="{base};text-align:{side};font-weight:500;{_DIM}">{escape(head)}</th>'
        for head, side in zip(heads, align, strict=True)
    )
    body = []
    for row, line in zip(snapshot.rows, lines, strict=True):
        made = []
        for head, text, side in zip(heads, line, align, strict=True):
            failed = head == "result" and row.state in ("failed", "lost")
            colour = f";color:{COLOURS['failed']}" if failed else ""
            shown = _shortened(head, text)
            whole = f' title="{escape(text)}"' if shown != text else ""
            dot = _dot(row.state) if head == "state" else ""
            made.append(f'<td{whole} style="{base};text-align:{side};{_CODE}{colour}">{dot}{escape(shown)}</td>')
        body.append(f'<tr style="{_NO_FILL}">{"".join(made)}</tr>')
    return (
        '<div style="margin-top:8px;overflow-x:auto"><table style="border-collapse:collapse;margin:0;border:0;'
        f'font-size:0.92em"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def headings(snapshot: Snapshot) -> list[str]:
    """The columns of the small table."""
    return ["call", *snapshot.parameters, "result", "state", "time", "worker"]


def cells(row: Row) -> list[str]:
    """A row of the small table, as text."""
    state = f"{row.state}, try {row.attempts}" if row.attempts > 1 else row.state
    time = "" if row.runtime is None else duration(row.runtime)
    return [str(row.index), *row.parameters, row.result, state, time, row.worker]


def _shortened(head: str, text: str) -> str:
    return short(text, _RESULT if head == "result" else _CELL)


def _numeric(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns stand right."""
    columns = zip(*lines, strict=True)
    return [
        head == "time" or (any(column) and all(_NUMBER.fullmatch(text) for text in column))
        for head, column in zip(heads, columns, strict=True)
    ]


def snapshot_text(snapshot: Snapshot, width: int = 100) -> str:
    """A snapshot as lines of text."""
    legend = "  ".join(f"{count(number)} {state}" for state, number in snapshot.present())
    lines = [f"{snapshot.name}  {snapshot.progress()}  {snapshot.pace()}", f"[{text_bar(snapshot, _BAR)}]  {legend}"]
    lines += [f"{kind} × {count(number)}: {message}" for kind, number, message in snapshot.failures[:_FAILURES]]
    if more := _more_failures(snapshot):
        lines.append(more)
    lines += _table_text(snapshot)
    if rest := snapshot.rest():
        lines.append(rest)
    return "\n".join(short_line(line, width) for line in lines)


def text_bar(snapshot: Snapshot, width: int) -> str:
    """The bar by state: # done, x failed or lost, - cancelled, > under way."""
    bar, passed = "", 0
    for state, number in snapshot.present():
        passed += number
        bar = bar.ljust(passed * width // max(1, snapshot.total), _MARKS.get(state, "."))
    return bar.ljust(width, ".")


def _table_text(snapshot: Snapshot) -> list[str]:
    if not snapshot.rows:
        return []
    heads = headings(snapshot)
    lines = [list(map(_shortened, heads, cells(row))) for row in snapshot.rows]
    right = _numeric(heads, lines)
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [heads, *lines]
    ]


def short_line(line: str, width: int) -> str:
    """A line cut to a width, its spaces kept."""
    return line if len(line) <= width else line[: width - 1] + "…"
