"""The live view of a session: where it works, what waits, who works, how fast."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from qnb.notebook import plain
from qnb.notebook.live import present
from qnb.notebook.places import from_here, room_text
from qnb.notebook.polled import PolledView
from qnb.notebook.words import count, rate

if TYPE_CHECKING:
    from qnb.session.session import Session

RATE_SECONDS = 5.0
HISTORY = 60
RUNS = 5


def display(session: Session) -> None:
    """Show a session: live in a notebook, as text elsewhere."""
    present(
        lambda: SessionView(session),
        lambda view: isinstance(view, SessionView) and view.session is session,
        lambda: repr(session),
    )


class SessionView(PolledView):
    """A session on stage."""

    entry = "session"

    def __init__(self, session: Session) -> None:
        super().__init__(session, {})
        self._ended: deque[tuple[float, dict[str, int]]] = deque()
        self._history: deque[float] = deque(maxlen=HISTORY)
        self.state = self._state([], {})

    def look(self) -> dict[str, Any]:
        workers = list(self.session.workers)
        queues = dict.fromkeys([self.session.queue, *(name for row in workers for name in row.get("queues", ()))])
        return self._state(workers, {queue: self.session.broker.depth(queue) for queue in queues})

    def _state(self, workers: list[dict[str, Any]], depths: dict[str, int | None]) -> dict[str, Any]:
        session = self.session
        throughput = self._throughput(workers)
        self._history.append(round(throughput, 1))
        return {
            "name": session.name,
            "broker": from_here(session.broker_url),
            "backend": "the same" if session.backend_url == session.broker_url else from_here(session.backend_url),
            "room": room_text(session.backend),
            "queue": session.queue,
            "queues": [[name, depth] for name, depth in depths.items()],
            "workers": len(workers),
            "lanes": sum(int(row.get("concurrency", 1)) for row in workers),
            "busy": sum(int(row.get("busy", 0)) for row in workers),
            "starting": bool(session.local_workers) and not workers,
            "start": f"qnb worker {session.broker_url}",
            "pending": max(0, session.collector.own_pending),
            "rate": round(throughput, 2),
            "history": list(self._history),
            "runs": self._runs(),
            "closed": session.closed,
        }

    def _throughput(self, workers: list[dict[str, Any]]) -> float:
        """Calls that all workers together ended a second, lately."""
        now = time.monotonic()
        totals = {row["worker"]: int(row.get("done", 0)) + int(row.get("failed", 0)) for row in workers}
        self._ended.append((now, totals))
        while len(self._ended) > 2 and now - self._ended[1][0] >= RATE_SECONDS:
            self._ended.popleft()
        since, before = self._ended[0]
        # one that came or went in between counts for nothing
        ended = sum(max(0, total - before[name]) for name, total in totals.items() if name in before)
        return ended / (now - since) if now > since else 0.0

    def _runs(self) -> list[list[Any]]:
        batches = sorted(self.session.batches.values(), key=lambda batch: batch.created_at)[-RUNS:]
        counts = [(batch, batch.counts) for batch in batches]
        return [
            [batch.run, batch.name, len(batch), *(states[name] for name in ("done", "failed", "cancelled", "lost"))]
            for batch, states in counts
        ]

    def bundle(self) -> dict[str, str]:
        state = self.state
        waiting = [f"{name}: {'not told' if depth is None else count(depth)}" for name, depth in state["queues"]]
        lines = [
            ["broker", state["broker"]],
            ["backend", state["backend"]],
            *([["on disk", state["room"]]] if state["room"] else []),
            ["queues", ", ".join(waiting) or state["queue"]],
            ["workers", self._workers_text()],
            ["throughput", rate(state["rate"]) or "nothing just now"],
        ]
        return plain.bundle(f"Session {state['name']}", ["", ""], lines, f"as of {time.strftime('%H:%M:%S')}")

    def _workers_text(self) -> str:
        state = self.state
        if state["starting"]:
            return "starting"
        if not state["workers"]:
            return f"none: start one with {state['start']}"
        return f"{state['workers']}, {state['busy']} of {state['lanes']} processes busy"
