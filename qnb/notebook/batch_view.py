"""The live view of a Batch in a notebook.

It stays where it is when the batch is over: its rows can still be sorted, filtered and opened. What is saved is HTML
and text of the last state, which outlive the kernel.
"""

from __future__ import annotations

import time
from typing import Any

from qnb.notebook.detail import detail, example
from qnb.notebook.failures import GroupedFailures
from qnb.notebook.fallback import batch_text, snapshot_html, snapshot_text
from qnb.notebook.live import Buffers, LiveView, Message, present
from qnb.notebook.rows import Rows, Texts
from qnb.notebook.snapshot import BatchLike, Snapshot, pulse, take
from qnb.notebook.stage import PERIOD


def display(batch: BatchLike) -> None:
    """Show a batch: live in a notebook, as text elsewhere."""
    present(
        lambda: BatchView(batch),
        lambda view: isinstance(view, BatchView) and view.batch is batch,
        lambda: batch_text(batch),
    )


class BatchView(LiveView):
    """One batch on stage."""

    entry = "batch"
    asks = ("cancel", "retry", "detail", "example", "texts")
    ephemeral = False

    def __init__(self, batch: BatchLike) -> None:
        super().__init__()
        self.batch = batch
        self._failures = GroupedFailures(batch)
        self._failures_sent: object = None
        self._rows = Rows(batch)
        self._over_sent = False
        self._forget = batch.on_change(self.touch)
        self.touched = True  # what changes between the first snapshot and here

    def bundle(self) -> dict[str, str]:
        snapshot = take(self.batch)
        return {"text/plain": snapshot_text(snapshot), "text/html": snapshot_html(snapshot)}

    def first(self) -> Message:
        return {"kind": "snapshot", "seq": 0, **self._take().wire()}

    def whole(self) -> tuple[Message, Buffers]:
        head = self._take()  # before the rows: who is told that all is over has the last outcome too
        rows, buffers = self._rows.whole()
        self._failures_sent, self._over_sent = head.failures, head.over
        return {**head.wire(), "rows": rows}, buffers

    def news(self) -> tuple[Message, Buffers] | None:
        head = self._take()
        message = {"kind": "delta", **pulse(head)}
        if self._failures_sent != head.failures:
            message["failures"] = [list(group) for group in head.failures]
        if head.over != self._over_sent:
            message["over"] = head.over
        self._failures_sent, self._over_sent = head.failures, head.over
        part = self._rows.changes() if self._rows.begun else None
        return (message, []) if part is None else ({**message, "rows": part[0]}, part[1])

    def pulse(self) -> Message:
        return pulse(self._take())

    def over(self) -> bool:
        return self.batch.over

    def next_news(self) -> float | None:
        if self._rows.begun and self._rows.behind:
            return time.monotonic() + PERIOD / 2
        due = self._failures.due()
        return None if due == float("inf") else due

    def release(self) -> None:
        self._forget()

    def _take(self) -> Snapshot:
        return take(self.batch, self._failures.groups(), rows=False)

    # What a view can ask -------------------------------------------------------------------------------------

    def ask_cancel(self) -> str:
        """Cancel what has not ended."""
        return f"{self.batch.cancel() or 0} calls cancelled"

    def ask_retry(self) -> dict[str, Any]:
        """Run what failed or was lost once more, as a batch of its own; `key` marks where its view is to stand."""
        again = self.batch.retry()
        view = BatchView(again)
        view.open()
        return {"key": view.key, "run": again.run, "calls": len(again)}

    def ask_detail(self, index: int) -> dict[str, Any]:
        """Everything of one call."""
        return detail(self.batch, int(index))

    def ask_example(self, kind: str) -> dict[str, Any]:
        """The first call that failed with this exception."""
        return detail(self.batch, example(self.batch, kind))

    def ask_texts(self, indices: list[int]) -> Texts:
        """The text of rows that are being looked at."""
        return self._rows.texts_of([index for index in map(int, indices[:200]) if 0 <= index < len(self.batch)])
