"""What every live view is: a widget fed with numbered messages while it can be seen, and outputs that outlive it.

An output first has the widget beside HTML and text. As soon as a browser has drawn it, the output becomes HTML and
text alone: in a page of Jupyter the view then stands in the place of that HTML, found by its mark, so that whatever is
saved, and whenever, is what a reader without a kernel can show. Not so under voila, whose page is built from what
each cell leaves and asks for its widgets only then.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from IPython.core.getipython import get_ipython

from qnb.errors import QnbError
from qnb.notebook.stage import STAGE
from qnb.notebook.widget import STATIC, Widget, hear_while_busy, widget_class
from qnb.settings import has_notebook_server, in_voila

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
# Seconds. A live view that heard nothing for three heartbeats says so.
HEARTBEAT = 2.0
# How long a widget that nobody looks at outlives its last output, or the last who looked: a browser may still be
# building the view, or a page be reloading.
GRACE, AWAY = 5.0, 600.0
# How often the HTML in outputs is brought up to date while it is hidden behind the view, for who saves the notebook.
REFRESH = 30.0
# How long a widget outlives outputs that were cleared: the page may still be taking them down.
CLEARED = 1.0
# How long after its first word an output becomes HTML: the page is still putting the widget in place.
SETTLED = 0.5

Message = dict[str, Any]
Buffers = list[Any]


class LiveView:
    """One object on stage. Subclasses say what is sent: `whole`, `news`, `bundle`, and what can be asked: `asks`."""

    entry: ClassVar[str]
    asks: ClassVar[tuple[str, ...]] = ()
    ephemeral: ClassVar[bool] = True  # it has no end worth writing down

    def __init__(self) -> None:
        self.key = uuid.uuid4().hex
        self.freed = threading.Event()
        self.finished = threading.Event()
        self.seq = 0
        self.touched = self._whole = False
        self._outputs: list[tuple[Any, str, str | None]] = []
        self._lock = threading.Lock()
        self._inbox: deque[Mapping[str, Any]] = deque()
        self._watchers: dict[str, bool] | None = None  # None: nobody has spoken yet, which does not mean nobody looks
        self._told: dict[str, int] = {}
        self._sent_at = self._refreshed_at = time.monotonic()
        self._left_at = time.monotonic() + GRACE
        self._swapped = False
        self._swap_at: float | None = None
        self._widget: Widget | None = None

    # For subclasses ------------------------------------------------------------------------------------------

    def bundle(self) -> dict[str, str]:
        """text/plain and text/html of now."""
        raise NotImplementedError

    def first(self) -> Message:
        """What a view starts from before it has heard the kernel: small, without buffers."""
        raise NotImplementedError

    def whole(self) -> tuple[Message, Buffers]:
        """Everything, for a view that has nothing."""
        raise NotImplementedError

    def news(self) -> tuple[Message, Buffers] | None:
        """What changed since the last message; `seq` is counted up for it."""
        raise NotImplementedError

    def pulse(self) -> Message:
        """What a heartbeat carries."""
        return {}

    def over(self) -> bool:
        """Whether nothing will change any more."""
        return False

    def next_news(self) -> float | None:
        """`time.monotonic()` at which there will be news without a touch; None for never."""
        return None

    def watched(self, _now: bool) -> None:
        """Somebody looks, or nobody does any more."""

    def release(self) -> None:
        """The view is gone: forget the object."""

    # Outputs -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the widget, and go on stage."""
        self._widget = widget_class(self.entry)(key=self.key, snapshot=self.first())
        hear_while_busy(self._widget)
        self._widget.on_msg(self._hear)
        STAGE.add(self)

    def widget(self) -> object:
        """Its widget, for a front end that puts it in place itself, as marimo does; without a bundle, the text."""
        if not _is_built(self):
            self.release()
            return self.bundle()["text/plain"]
        self.open()
        return self._widget

    def show(self, shell: Any) -> bool:
        """Make one more output that shows it. False when it is too late for that."""
        with self._lock:
            if self.freed.is_set() or self._widget is None:
                return False
            display_id = uuid.uuid4().hex
            mime = {WIDGET_MIME: {"version_major": 2, "version_minor": 1, "model_id": self._widget.model_id}}
            publisher = shell.display_pub
            publisher.publish(data=self._marked() | mime, transient={"display_id": display_id})
            # The publisher is kept, because a later %%capture puts another in its place.
            self._outputs.append((publisher, display_id, _cell(shell)))
            self._left_at = time.monotonic() + GRACE
            self._swapped = False
            return True

    def _marked(self) -> dict[str, str]:
        data = self.bundle()
        html = f'<div class="qnb-live qnb-live-{self.key}"><div>{data["text/html"]}</div></div>'
        return {**data, "text/html": html}

    def publish(self) -> None:
        """Bring the HTML and text of every output up to now, without the widget.

        With it, a reopened notebook would show "model not found" in place of the HTML.
        """
        with self._lock:
            self._refreshed_at = time.monotonic()
            self._swapped, self._swap_at = True, None
            if in_voila():
                return  # nobody saves its page, and what comes after a cell does not reach it
            data = self._marked() if self._outputs else {}
            for publisher, display_id, _ in self._outputs:
                publisher.publish(data=data, transient={"display_id": display_id}, update=True)

    def finish(self) -> None:
        """Nothing will change any more, or the kernel ends: leave what outlives it in every output."""
        if not self.finished.is_set():
            self.publish()
            self._left_at = time.monotonic() + GRACE
            self.finished.set()

    def rerun(self, cell: str) -> None:
        """A cell runs anew, and its outputs are gone."""
        with self._lock:
            mine = [output for output in self._outputs if output[2] == cell]
            if not mine:
                return
            self._outputs = [output for output in self._outputs if output[2] != cell]
            if not self._outputs:
                self._left_at = time.monotonic() + CLEARED
                self.freed.set()
        STAGE.wake()

    # On stage ------------------------------------------------------------------------------------------------

    def draw(self) -> bool:
        if self.freed.is_set():
            return self._leave() if time.monotonic() >= self._left_at else True
        self._answer()
        if self.over() and not self.finished.is_set():
            self.finish()
        if self._swap_at is not None and time.monotonic() >= self._swap_at:
            self.publish()
        if self._seen():
            self._send()
        if self._alone() and time.monotonic() >= self._left_at:
            return self._leave()
        return True

    def due(self) -> float | None:
        if self.freed.is_set():
            return self._left_at
        dues = [self._left_at] if self._alone() else []
        dues += [] if self._swap_at is None else [self._swap_at]
        if self._seen():
            dues += [] if self.finished.is_set() else [self._sent_at + HEARTBEAT]
            dues += [] if (news := self.next_news()) is None else [news]
        return min(dues, default=None)

    def touch(self) -> None:
        """Something has changed."""
        self.touched = True
        STAGE.wake()

    def _leave(self) -> bool:
        self.freed.set()
        self.finished.set()
        self.watched(False)
        self.release()
        if self._widget is not None:
            self._widget.close()
        return False

    def _alone(self) -> bool:
        """Whether nobody would miss it: none looks, and no output is still to be brought up to date."""
        if self._watchers is None and in_voila():
            return False  # its page may open long after the end of what it shows
        return not self._watchers and (self.finished.is_set() or (self.ephemeral and self._watchers is not None))

    def _seen(self) -> bool:
        return self._watchers is None or any(self._watchers.values())

    def _send(self) -> None:
        now = time.monotonic()
        if self._whole:
            self._whole = self.touched = False
            body, buffers = self.whole()
            self.send({"kind": "snapshot", "seq": self.seq, **body}, buffers)
        elif self.touched or ((due := self.next_news()) is not None and due <= now):
            self.touched = False  # before looking: what changes meanwhile is for the next time
            if (news := self.news()) is not None:
                self.seq += 1
                self.send({**news[0], "seq": self.seq}, news[1])
        elif now - self._sent_at >= HEARTBEAT and not self.finished.is_set():
            self.send({"kind": "beat", "seq": self.seq, **self.pulse()})
        if self._swapped and not self.finished.is_set() and now - self._refreshed_at > REFRESH:
            self.publish()

    def send(self, message: Message, buffers: Buffers | None = None) -> None:
        """Say something to the views."""
        assert self._widget is not None
        if message["kind"] in ("snapshot", "delta", "state", "beat"):
            self._sent_at = time.monotonic()
        self._widget.send(message, buffers or None)

    def _hear(self, _widget: object, content: Mapping[str, Any], _buffers: object) -> None:
        # On the main thread or a subshell's: only handed over here.
        self._inbox.append(content)
        STAGE.wake()

    def _answer(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            kind = message.get("kind")
            if kind in ("ready", "shown", "hidden", "gone", "away"):
                self._watch(str(kind), message)
            elif kind == "placed" and not self._swapped:
                self._swap_at = time.monotonic() + SETTLED
            elif kind == "resync":
                self._whole = True
            elif kind == "ask":
                self.send({"kind": "ack", "id": message.get("id")})
                # It may talk to the broker: not on the thread that draws.
                threading.Thread(target=self._do, args=(message,), name="qnb-ask", daemon=True).start()

    def _do(self, message: Mapping[str, Any]) -> None:
        what = str(message.get("what"))
        answer: Message = {"kind": "answer", "id": message.get("id"), "ok": True}
        try:
            if what not in self.asks:
                raise QnbError(f"{what!r} cannot be asked of this view")
            answer["value"] = getattr(self, f"ask_{what}")(**dict(message.get("with") or {}))
        except Exception as error:  # whatever it is, the view that asked says it
            answer |= {"ok": False, "value": f"{type(error).__name__}: {error}"}
        if not self.freed.is_set():
            self.send(answer)

    def _watch(self, kind: str, message: Mapping[str, Any]) -> None:
        view, number = str(message.get("view")), int(message.get("n", 0))
        self._whole = self._whole or kind == "ready"
        if number < self._told.get(view, 0):
            return  # overtaken: the first word of a view may wait behind a cell, the next come through a subshell
        self._told[view] = number
        watchers = self._watchers = {} if self._watchers is None else self._watchers
        if kind in ("gone", "away"):
            watchers.pop(view, None)
            self._left_at = max(self._left_at, time.monotonic() + (GRACE if kind == "gone" else AWAY))
        else:
            watchers[view] = kind != "hidden"
            self.touched = True
        self.watched(self._seen())


def present(make: Callable[[], LiveView], same: Callable[[LiveView], bool], text: Callable[[], str]) -> None:
    """Show an object: live in a notebook, as text elsewhere. `same` tells a view of the object that is on stage."""
    shell: Any = get_ipython()
    if not hasattr(shell, "kernel"):
        # IPython has written its prompt by now, and what has several lines is to stand below it.
        print(text() if shell is None else f"\n{text()}")
        return
    for view in STAGE.views():
        if isinstance(view, LiveView) and same(view) and view.show(shell):
            return
    view = make()
    if not _is_built(view):
        shell.display_pub.publish(data=view.bundle())
        view.release()
        return
    view.open()
    view.show(shell)
    _hook(shell)


def _is_run_by_a_program(shell: Any) -> bool:
    """Whether nobody looks while cells run, as with nbconvert or papermill: no page will ever tell of a view.

    Jupyter's pages and VS Code name the cell that they run, and a Jupyter server the notebook. Colab does neither.
    """
    return _cell(shell) is None and not has_notebook_server() and "google.colab" not in sys.modules


def _is_built(view: LiveView) -> bool:
    return (STATIC / f"{view.entry}.js").is_file()


def _cell(shell: Any) -> str | None:
    """The id of the cell that runs, where the front end tells it."""
    with contextlib.suppress(Exception):  # older kernels have no such thing
        return str(shell.get_parent()["metadata"]["cellId"])
    return None


def _hook(shell: Any) -> None:
    """See that views leave with their outputs, and that no output is left with a widget when its reader goes."""
    for event, callback in (("pre_run_cell", _outputs_go), ("post_run_cell", _publish_ends)):
        if callback not in shell.events.callbacks[event]:
            shell.events.register(event, callback)
    atexit.unregister(_publish_last)
    atexit.register(_publish_last)


def _live() -> list[LiveView]:
    return [view for view in STAGE.views() if isinstance(view, LiveView)]


def _outputs_go(_info: object) -> None:
    shell: Any = get_ipython()
    if (cell := _cell(shell)) is not None:
        for view in _live():
            view.rerun(cell)


def _publish_ends(_result: object) -> None:
    """After a cell, before its reply: whoever runs notebooks without a browser stops listening then."""
    shell: Any = get_ipython()
    views = [view for view in _live() if not view.finished.is_set()]
    for view in views:
        if view.over():
            STAGE.hurry()
            view.finished.wait(1.0)
        elif _is_run_by_a_program(shell):
            view.publish()
    if not _live():
        for event, callback in (("pre_run_cell", _outputs_go), ("post_run_cell", _publish_ends)):
            shell.events.unregister(event, callback)


def _publish_last() -> None:
    """The kernel ends: what is still live is left as it is now."""
    for view in _live():
        with contextlib.suppress(Exception):  # nobody may be listening any more
            view.finish()
