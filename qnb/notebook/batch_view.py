"""The live view of a Batch in a notebook.

The view is an anywidget fed with numbered messages while it can be seen. When the batch is over its outputs are
replaced by HTML and text, which outlive the kernel, and the widget is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from qnb.notebook.failures import GroupedFailures
from qnb.notebook.fallback import batch_text, snapshot_html, snapshot_text
from qnb.notebook.snapshot import BatchLike, Row, Snapshot, pulse, take
from qnb.notebook.stage import STAGE

if TYPE_CHECKING:
    from qnb.notebook.widget import BatchWidget

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
# Seconds. A live view that heard nothing for three heartbeats says so.
HEARTBEAT = 2.0
# How long the widget outlives its last output: a browser may still be building the view.
GRACE = 2.0


def display(batch: BatchLike) -> None:
    """Show a batch: live in a notebook, as text elsewhere."""
    shell: Any = get_ipython()
    if not hasattr(shell, "kernel"):
        # IPython has written its prompt by now, and the bar is to stand below the name.
        print(batch_text(batch) if shell is None else f"\n{batch_text(batch)}")
        return
    if batch.over or not _can_be_live():
        shell.display_pub.publish(data=_bundle(take(batch)))
        return
    for view in STAGE.views():
        if isinstance(view, BatchView) and view.batch is batch and view.show(shell.display_pub):
            return
    view = BatchView(batch)
    view.show(shell.display_pub)
    STAGE.add(view)
    _hook(shell)


def _can_be_live() -> bool:
    from qnb.notebook.widget import STATIC

    return (STATIC / "batch.js").is_file()


def _bundle(snapshot: Snapshot) -> dict[str, Any]:
    return {"text/plain": snapshot_text(snapshot), "text/html": snapshot_html(snapshot)}


class BatchView:
    """One batch on stage: its widget, and the outputs that show it."""

    def __init__(self, batch: BatchLike) -> None:
        from qnb.notebook.widget import BatchWidget, hear_while_busy

        self.batch = batch
        self.finished = threading.Event()
        self._outputs: list[tuple[Any, str]] = []
        self._lock = threading.Lock()
        self._inbox: deque[Mapping[str, Any]] = deque()
        self._watchers: dict[str, bool] | None = None  # None: nobody has spoken yet, which does not mean nobody looks
        self._told: dict[str, int] = {}
        self._touched = self._whole = False
        self._seq = 0
        self._sent: dict[int, Row] = {}
        self._sent_at = time.monotonic()
        self._left_at = 0.0
        self._failures = GroupedFailures(batch)
        self._failures_sent: object = None
        snapshot = self._take()
        self._remember(snapshot)
        self._widget: BatchWidget = BatchWidget(snapshot=self._whole_message(snapshot))
        hear_while_busy(self._widget)
        self._widget.on_msg(self._hear)
        self._forget = batch.on_change(self._touch)
        self._touch()  # what changed between the snapshot and here

    def show(self, publisher: Any) -> bool:
        """Make one more output that shows the batch. False when it is too late for a live one."""
        with self._lock:
            if self.finished.is_set():
                return False
            display_id = uuid.uuid4().hex
            data = _bundle(take(self.batch)) | {
                WIDGET_MIME: {"version_major": 2, "version_minor": 1, "model_id": self._widget.model_id}
            }
            publisher.publish(data=data, transient={"display_id": display_id})
            # Kept, because a later %%capture puts another in its place.
            self._outputs.append((publisher, display_id))
            return True

    def draw(self) -> bool:
        if self.finished.is_set():
            return not self._leave()
        self._answer()
        if self.batch.over:
            self.finish()
        elif self._watched():
            self._send_news()
        return True

    def due(self) -> float | None:
        if self.finished.is_set():
            return self._left_at
        if not self._watched():
            return None
        return min(self._sent_at + HEARTBEAT, self._failures.due())

    def finish(self) -> None:
        """Replace every output by what outlives the kernel, as the batch is now."""
        with self._lock:
            if self.finished.is_set():
                return
            self._forget()
            snapshot = take(self.batch)
            self._seq += 1
            self._widget.snapshot = self._whole_message(snapshot)
            for publisher, display_id in self._outputs:
                # Without the widget: a reopened notebook would show "model not found" in place of the HTML.
                publisher.publish(data=_bundle(snapshot), transient={"display_id": display_id}, update=True)
            self._left_at = time.monotonic() + GRACE
            self.finished.set()

    def _leave(self) -> bool:
        from qnb.notebook.widget import close

        if time.monotonic() < self._left_at:
            return False
        close(self._widget)
        return True

    def _touch(self) -> None:
        self._touched = True
        STAGE.wake()

    def _hear(self, _widget: object, content: Mapping[str, Any], _buffers: object) -> None:
        # On the main thread or a subshell's: only handed over here.
        self._inbox.append(content)
        STAGE.wake()

    def _answer(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            kind = message.get("kind")
            if kind in ("ready", "shown", "hidden", "gone"):
                self._watch(str(kind), str(message.get("view")), int(message.get("n", 0)))
            elif kind == "resync":
                self._whole = True
            elif kind == "cancel":
                self._widget.send({"kind": "ack", "id": message.get("id")})
                # It talks to the broker: not on the thread that draws.
                threading.Thread(target=self.batch.cancel, name="qnb-cancel", daemon=True).start()

    def _watch(self, kind: str, view: str, number: int) -> None:
        if number < self._told.get(view, 0):
            return  # overtaken: the first word of a view may wait behind a cell, the next come through a subshell
        self._told[view] = number
        watchers = self._watchers = self._watchers or {}
        if kind == "gone":
            watchers.pop(view, None)
        else:
            watchers[view] = kind != "hidden"
            self._whole = self._whole or watchers[view]

    def _watched(self) -> bool:
        return self._watchers is None or any(self._watchers.values())

    def _send_news(self) -> None:
        now = time.monotonic()
        if self._whole:
            self._whole = self._touched = False
            snapshot = self._take()
            self._remember(snapshot)
            message = self._whole_message(snapshot)
        elif self._touched or self._failures.due() <= now:
            self._touched = False  # before looking: what changes meanwhile is for the next time
            message = self._change_message(self._take())
        elif now - self._sent_at >= HEARTBEAT:
            message = {"kind": "beat", "seq": self._seq, **pulse(self._take())}
        else:
            return
        self._sent_at = now
        self._widget.send(message)

    def _take(self) -> Snapshot:
        return take(self.batch, self._failures.groups())

    def _whole_message(self, snapshot: Snapshot) -> dict[str, Any]:
        return {"kind": "snapshot", "seq": self._seq, **snapshot.wire()}

    def _change_message(self, snapshot: Snapshot) -> dict[str, Any]:
        rows = [row for row in snapshot.rows if not row.same_as(self._sent.get(row.index))]
        self._seq += 1
        message = {
            "kind": "delta",
            "seq": self._seq,
            **pulse(snapshot),
            "rows": [row.wire() for row in rows],
            "order": [row.index for row in snapshot.rows],
        }
        if self._failures_sent != snapshot.failures:
            message["failures"] = [list(group) for group in snapshot.failures]
        self._remember(snapshot)
        return message

    def _remember(self, snapshot: Snapshot) -> None:
        self._sent = {row.index: row for row in snapshot.rows}
        self._failures_sent = snapshot.failures


def _hook(shell: Any) -> None:
    """See that no output is left showing a widget whose batch is over when its reader goes."""
    if _publish_ends not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _publish_ends)
        atexit.unregister(_publish_last)
        atexit.register(_publish_last)


def _publish_ends(_result: object) -> None:
    """After a cell, before its reply: whoever runs notebooks without a browser stops listening then."""
    shell: Any = get_ipython()
    views = [view for view in STAGE.views() if isinstance(view, BatchView) and not view.finished.is_set()]
    for view in views:
        if view.batch.over:
            STAGE.hurry()
            view.finished.wait(1.0)
    if not views:
        shell.events.unregister("post_run_cell", _publish_ends)


def _publish_last() -> None:
    """The kernel ends: what is still running is left as it is now."""
    for view in STAGE.views():
        if isinstance(view, BatchView):
            with contextlib.suppress(Exception):  # nobody may be listening any more
                view.finish()
