"""The live view of the queues: what waits in each, who serves it, and buttons that pause and resume it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from qnb.errors import QnbError
from qnb.notebook import plain
from qnb.notebook.live import present
from qnb.notebook.polled import PolledView
from qnb.notebook.words import count

if TYPE_CHECKING:
    from qnb.session.session import Session

HISTORY = 60


def display(session: Session) -> None:
    """Show the queues of a session's broker."""
    present(
        lambda: QueuesView(session),
        lambda view: isinstance(view, QueuesView) and view.session is session,
        lambda: QueuesView(session).bundle()["text/plain"],
    )


class QueuesView(PolledView):
    """The queues of a broker on stage."""

    entry = "queues"
    asks = ("pause", "resume")

    def __init__(self, session: Session) -> None:
        super().__init__(session, {})
        self._history: dict[str, deque[int]] = {}
        self.state = self.look()
        self.fresh = True

    def look(self) -> dict[str, Any]:
        workers = list(self.session.workers)
        served: dict[str, list[dict[str, Any]]] = {self.session.queue: []}
        for name in self.session.broker.queues():
            served.setdefault(name, [])
        for row in workers:
            for name in row.get("queues", ()):
                served.setdefault(name, []).append(row)
        return {"queues": [self._queue(name, rows) for name, rows in sorted(served.items())]}

    def _queue(self, name: str, workers: list[dict[str, Any]]) -> dict[str, Any]:
        depth = self.session.broker.depth(name)
        history = self._history.setdefault(name, deque(maxlen=HISTORY))
        history.append(depth or 0)
        return {
            "queue": name,
            "depth": depth,
            "history": list(history),
            "workers": len(workers),
            "lanes": sum(int(row.get("concurrency", 1)) for row in workers),
            "paused": sum(name in row.get("paused", ()) for row in workers),
            "own": name == self.session.queue,
        }

    def bundle(self) -> dict[str, str]:
        lines = [
            [
                row["queue"],
                "not told" if row["depth"] is None else count(row["depth"]),
                count(row["workers"]),
                count(row["paused"]) if row["paused"] else "",
            ]
            for row in self.state["queues"]
        ]
        heads = ["queue", "waiting", "workers", "paused on"]
        return plain.bundle("Queues", heads, lines, f"as of {time.strftime('%H:%M:%S')}")

    def ask_pause(self, queue: str) -> str:
        """Have every worker take nothing more from a queue."""
        return self._say(self.session.control.pause(queue), f"{queue} is paused")

    def ask_resume(self, queue: str) -> str:
        """Have every worker take from it again."""
        return self._say(self.session.control.resume(queue), f"{queue} goes on")

    def _say(self, replies: dict[str, Any], words: str) -> str:
        wrong = [name for name, reply in replies.items() if isinstance(reply, dict) and "error" in reply]
        if not replies or len(wrong) == len(replies):
            raise QnbError("no worker answered within a second, so that nothing has changed")
        self.look_again()
        return f"{words} on {len(replies) - len(wrong)} of {len(replies)} workers."
