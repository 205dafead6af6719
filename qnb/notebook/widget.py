"""The anywidget models, one a bundle of widgets/. Importing this imports ipywidgets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


class LiveWidget(anywidget.AnyWidget):
    """The model behind the views of one object. `snapshot` is what a view starts from, `key` marks its outputs."""

    key: Any = traitlets.Unicode().tag(sync=True)
    snapshot: Any = traitlets.Dict().tag(sync=True)
    # None is a view that is as wide as its output. With one, ipywidgets builds a second model and view for it, and
    # posts a message to the widget once that is there: where the output has become HTML by then, the widget has been
    # taken down and the message is an error in the console ("processLuminoMessage" of null).
    layout: Any = traitlets.Any(None, allow_none=True).tag(sync=True)


@cache
def widget_class(entry: str) -> type[LiveWidget]:
    """The model of an entry of widgets/src."""
    # As text: of a path anywidget tells every model when the file changes, and so keeps all of them for ever.
    code, style = ((STATIC / f"{entry}.{kind}").read_text(encoding="utf-8") + "\n" for kind in ("js", "css"))
    parts = {"_esm": code, "_css": style, "__module__": __name__}
    return type(f"{entry.title()}Widget", (LiveWidget,), parts)


class Widget(Protocol):
    """What of ipywidgets the stage needs."""

    model_id: str
    comm: Any
    snapshot: Any

    def send(self, content: object, buffers: Any = None) -> None: ...
    def on_msg(self, callback: Any, remove: bool = False) -> None: ...
    def close(self) -> None: ...
    def _handle_msg(self, message: object) -> None: ...


def hear_while_busy(widget: Widget) -> None:
    """Let messages of the front end reach the kernel on its subshell while a cell runs, and disturb nothing there.

    ipykernel 7.4 answers on the shell that last published, which is the main one while a cell blocks it. And a comm
    triggers `post_execute` for each message, on the subshell's thread: matplotlib would then show and close the
    figures that the running cell is drawing.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = None
    widget.comm.handle_msg = widget._handle_msg
