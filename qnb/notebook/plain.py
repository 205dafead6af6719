"""Small tables as text and as HTML that needs nothing: what outlives the kernel of every view but the batch's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Line = Sequence[str]
_EDGE = "border:0;border-bottom:1px solid rgba(128,134,140,0.35);background-color:transparent"
_CELL = f"{_EDGE};padding:2px 20px 2px 0;text-align:left;white-space:nowrap"
_DIM = "opacity:0.7"


def bundle(title: str, heads: Line, lines: Sequence[Line], note: str = "") -> dict[str, str]:
    """text/html and text/plain of one table; `note` stands below it."""
    return {"text/html": html(title, heads, lines, note), "text/plain": text(title, heads, lines, note)}


def html(title: str, heads: Line, lines: Sequence[Line], note: str = "") -> str:
    """With inline styles only, no script and no style sheet."""
    top = "".join(f'<th scope="col" style="{_CELL};font-weight:500;{_DIM}">{escape(head)}</th>' for head in heads)
    rows = "".join(f'<tr style="background-color:transparent">{"".join(map(_cell, line))}</tr>' for line in lines)
    table = (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:4px 0;border:0">'
        f"<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    below = f'<div style="{_DIM}">{escape(note)}</div>' if note else ""
    head = f"<div><strong>{escape(title)}</strong></div>"
    return f'<div style="padding:6px 0;line-height:1.5;font-size:13px">{head}{table if lines else ""}{below}</div>'


def _cell(content: str) -> str:
    return f'<td style="{_CELL}">{escape(content)}</td>'


def text(title: str, heads: Line, lines: Sequence[Line], note: str = "") -> str:
    """As lines of text."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)] if lines else []
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in ([heads, *lines] if lines else [])
    ]
    return "\n".join([title, *rows, *([note] if note else [])])
