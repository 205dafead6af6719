"""MIME bundles of a task's displays as HTML and as text, to stand between what it prints."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from typing import Any

from qnb.message import Display

_PRE = "margin:0;padding:0;white-space:pre-wrap;background-color:transparent;border:0;font-size:0.92em"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def woven_html(output: str, displays: Iterable[Display]) -> str:
    """What was printed, and what was shown at its places in it."""
    parts, position = [], 0
    for display in displays:
        parts += [_pre(output[position : display.at]), display_html(display)]
        position = max(position, display.at)
    return "".join([*parts, _pre(output[position:])])


def woven_text(output: str, displays: Iterable[Display]) -> str:
    """The same as text."""
    parts, position = [], 0
    for display in displays:
        parts += [output[position : display.at], f"{display.data.get('text/plain', '')}\n"]
        position = max(position, display.at)
    return "".join([*parts, output[position:]])


def _pre(text: str) -> str:
    text = _COLOURS.sub("", text)
    return f'<pre style="{_PRE}">{escape(text)}</pre>' if text else ""


def display_html(display: Display) -> str:
    """The richest of a display that HTML can hold."""
    data = display.data
    if isinstance(html := data.get("text/html"), str):
        return f"<div>{html}</div>"
    if isinstance(svg := data.get("image/svg+xml"), str):
        return f'<div><img alt="{_words(data)}" src="data:image/svg+xml;base64,{_base64(svg.encode())}"></div>'
    for kind in _IMAGES:
        if (image := data.get(kind)) is not None:
            about = f'alt="{_words(data)}"{_size(display, kind)}'
            return f'<div><img {about} src="data:{kind};base64,{_base64(image)}"></div>'
    return _pre(str(data.get("text/plain") or data.get("text/markdown") or ", ".join(data)))


def _base64(image: object) -> str:
    return base64.b64encode(image).decode() if isinstance(image, bytes) else str(image).replace("\n", "")


def _words(data: dict[str, object]) -> str:
    return escape(str(data.get("text/plain", "an image"))[:200])


def _size(display: Display, kind: str) -> str:
    about: Any = display.metadata.get(kind)
    if not isinstance(about, dict):
        return ""
    return "".join(f' {side}="{about[side]}"' for side in ("width", "height") if isinstance(about.get(side), int))
