"""The live view of the workers: what each is doing, and the buttons that control it."""

from __future__ import annotations

import time
from typing import Any

from qnb.monitor.control import Workers
from qnb.notebook import plain
from qnb.notebook.live import present
from qnb.notebook.polled import PolledView, answered
from qnb.notebook.snapshot import short
from qnb.notebook.words import count, duration

# Seconds for which a worker that is no longer there is still shown.
REMEMBERED = 300.0
TASKS = 50
_TOLD = ("host", "pid", "pool", "queues", "paused", "concurrency", "busy", "done", "failed", "python", "started_at")


def display(workers: Workers) -> None:
    """Show the workers: live where the session that asked is open."""
    session = workers.session
    present(
        lambda: WorkersView(workers),
        lambda view: isinstance(view, WorkersView) and session is not None and view.session is session,
        lambda: repr(workers),
    )


class WorkersView(PolledView):
    """The workers on stage."""

    entry = "workers"
    asks = ("pause", "resume", "grow", "shrink", "shutdown", "revoke")

    def __init__(self, workers: Workers) -> None:
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}
        self._used: dict[str, tuple[float, float]] = {}
        super().__init__(workers.session, {})
        self.state = self._state(list(workers), {}, {})

    def look(self) -> dict[str, Any]:
        rows = list(self.session.workers)
        names = [row["worker"] for row in rows]
        control = self.session.control
        stats = control.stats(to=names) if names else {}
        active = control.active(to=list(stats)) if stats else {}
        return self._state(rows, stats, active)

    def _state(self, rows: list[dict[str, Any]], stats: dict[str, Any], active: dict[str, Any]) -> dict[str, Any]:
        now = time.time()
        for row in rows:
            name = row["worker"]
            told = {key: row[key] for key in _TOLD if key in row}
            answer = stats.get(name)
            told |= self._vitals(name, answer) if isinstance(answer, dict) and "error" not in answer else {}
            tasks = active.get(name)
            told["tasks"] = [_task(task) for task in tasks[:TASKS]] if isinstance(tasks, list) else []
            told["answers"] = not stats or name in stats
            self._known[name] = now, told
        shown = []
        for name, (seen, told) in sorted(self._known.items()):
            if now - seen > REMEMBERED:
                del self._known[name]
                continue
            here = seen == now
            shown.append({"worker": name, **told, "here": here, "seen": round(seen, 1)})
        url = self.session.broker_url if self.session is not None else "URL"
        return {"workers": shown, "now": round(now, 1), "start": f"qnb worker {url}", "live": self.session is not None}

    def _vitals(self, name: str, stats: dict[str, Any]) -> dict[str, Any]:
        now, used = time.monotonic(), stats.get("cpu_total_seconds")
        before = self._used.get(name)
        cpu = None
        if used is not None:
            if before is not None and now > before[0]:
                cpu = max(0.0, round((used - before[1]) / (now - before[0]), 2))
            self._used[name] = now, used
        told = {"memory": stats.get("rss_bytes"), "version": stats.get("version"), "load": stats.get("load")}
        return {**told, "cpu": cpu}

    def bundle(self) -> dict[str, str]:
        rows = self.state["workers"]
        heads = ["worker", "state", "busy", "done", "failed", "memory", "current tasks", "queues", "version"]
        lines = [_line(row) for row in rows]
        note = f"as of {time.strftime('%H:%M:%S')}" if rows else f"Start one with `{self.state['start']}`."
        title = f"{count(len(rows))} {'worker' if len(rows) == 1 else 'workers'}" if rows else "No workers"
        return plain.bundle(title, heads, lines, note)

    # What a view can ask -------------------------------------------------------------------------------------

    def _queues(self, worker: str) -> list[str]:
        return list(self._known[worker][1].get("queues", ()))

    def ask_pause(self, worker: str) -> str:
        """Have a worker take nothing more."""
        for queue in self._queues(worker):
            answered(self.session.control.pause(queue, to=[worker]), worker)
        return self._done(f"{worker} takes nothing more; what it has taken it finishes.")

    def ask_resume(self, worker: str) -> str:
        """Have it take from its queues again."""
        for queue in self._known[worker][1].get("paused") or self._queues(worker):
            answered(self.session.control.resume(queue, to=[worker]), worker)
        return self._done(f"{worker} goes on.")

    def ask_grow(self, worker: str) -> str:
        """One lane more."""
        lanes = answered(self.session.control.pool_grow(1, to=[worker]), worker)["concurrency"]
        return self._done(f"{worker} now runs {lanes} at a time.")

    def ask_shrink(self, worker: str) -> str:
        """One lane fewer."""
        lanes = answered(self.session.control.pool_shrink(1, to=[worker]), worker)["concurrency"]
        return self._done(f"{worker} now runs {lanes} at a time.")

    def ask_shutdown(self, worker: str) -> str:
        """Have it finish what runs and end."""
        answered(self.session.control.shutdown(to=[worker]), worker)
        return self._done(f"{worker} finishes what it runs and ends.")

    def ask_revoke(self, worker: str, task: str) -> str:
        """End a task that runs there."""
        answered(self.session.control.revoke(task, terminate=True, to=[worker]), worker)
        return self._done(f"{task} is being ended.")

    def _done(self, sentence: str) -> str:
        self.look_again()
        return sentence


def _task(task: dict[str, Any]) -> dict[str, Any]:
    seconds = task.get("seconds")
    since = None if seconds is None else round(seconds, 1)
    return {"id": task["id"], "name": short(str(task["name"]), 60), "since": since}


def _line(row: dict[str, Any]) -> list[str]:
    tasks = [f"{task['name']} {duration(task['since'] or 0)}" for task in row["tasks"][:3]]
    more = len(row["tasks"]) - len(tasks)
    memory = row.get("memory")
    return [
        row["worker"],
        "gone" if not row["here"] else "paused" if row.get("paused") else "here",
        f"{row.get('busy', 0)} of {row.get('concurrency', 1)}",
        count(row.get("done", 0)),
        count(row.get("failed", 0)),
        "" if not memory else f"{memory / 2**20:,.0f} MiB",
        ", ".join([*tasks, *([f"and {more} more"] if more > 0 else [])]),
        ", ".join(row.get("queues", ())),
        row.get("version") or "",
    ]
