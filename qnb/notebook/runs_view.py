"""The live view of the history of runs, in which a click attaches one.

`session.runs()` is a plain DataFrame; this is its other door: `%qnb runs`, or `display(session)` here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from qnb.notebook import plain
from qnb.notebook.batch_view import BatchView
from qnb.notebook.live import present
from qnb.notebook.places import from_here
from qnb.notebook.polled import PolledView
from qnb.notebook.stage import STAGE
from qnb.notebook.words import count
from qnb.session import history

if TYPE_CHECKING:
    from qnb.session.session import Session

LIMIT = 50
# Counting reads the outcomes of every run that is shown: it may take so much of one core's time.
SHARE = 0.05
_ENDS = ("done", "failed", "cancelled", "lost", "open")


def display(session: Session, limit: int = LIMIT) -> None:
    """Show the newest runs in the session's backend, of all sessions."""
    present(
        lambda: RunsView(session, limit),
        lambda view: isinstance(view, RunsView) and view.session is session,
        lambda: repr(session.runs(limit)),
    )


class RunsView(PolledView):
    """The runs of a backend on stage."""

    entry = "runs"
    asks = ("attach", "forget")
    period = 3.0

    def __init__(self, session: Session, limit: int = LIMIT) -> None:
        super().__init__(session, {})
        self._limit = limit
        self.state = self.look()
        self.fresh = True

    def look(self) -> dict[str, Any]:
        begun = time.thread_time()
        session = self.session
        found = history.rows(session.backend, session.signer, self._limit)
        rows = [
            {
                **{name: row[name] for name in ("run", "kind", "name", "calls", "session")},
                "ends": [row[name] for name in _ENDS],
                "at": row["created_at"],
                "mine": row["run"].startswith(session.id),
            }
            for row in (dict(zip(history.COLUMNS, values, strict=True)) for values in found)
        ]
        self._seconds = max(self.period, (time.thread_time() - begun) / SHARE)
        return {"runs": rows, "backend": from_here(self.session.backend_url), "limit": self._limit}

    def bundle(self) -> dict[str, str]:
        heads = ["run", "kind", "name", "calls", *_ENDS, "began", "session"]
        lines = [
            [
                row["run"],
                row["kind"],
                row["name"],
                count(row["calls"]),
                *map(count, row["ends"]),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at"])),
                row["session"],
            ]
            for row in self.state["runs"]
        ]
        return plain.bundle("Runs" if lines else "No runs yet", heads, lines, "session.attach(run) gives one back")

    def ask_attach(self, run: str) -> dict[str, Any]:
        """The batch of a run; `key` marks where its view is to stand."""
        batch = self.session.attach(run)
        for view in STAGE.views():
            if isinstance(view, BatchView) and view.batch is batch and not view.freed.is_set():
                return {"key": view.key, "run": run}
        view = BatchView(batch)
        view.open()
        return {"key": view.key, "run": run}

    def ask_forget(self, run: str) -> str:
        """Remove a run, its outcomes and its arguments."""
        self.session.forget(run)
        self.look_again()
        return f"{run} is forgotten."
