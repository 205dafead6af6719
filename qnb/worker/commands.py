"""What a worker does when told to, and what it tells those who watch."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qnb.codec.signing import NOTE
from qnb.message import CANCELLED, DONE, FAILED, STATES, Command, Event, Note, Progress, Reply, split_task_id
from qnb.worker.limits import per_second, seconds_or_none
from qnb.worker.vitals import vitals

if TYPE_CHECKING:
    from qnb.worker.loop import Worker
    from qnb.worker.state import Piece

_ACTIVE_LIMIT = 1000
_EVENTS_A_TURN = 1000


class Commands:
    """Runs the commands that come over the Bus; keeps the watchers' leases and their events."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._watchers: dict[str, float] = {}
        self._followers: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()  # commands come in one thread, outcomes are told in others
        self._events: list[Event] = []

    def run(self, command: Command) -> Reply:
        """The answer to one command; never raises."""
        name = self._worker.options.name
        handler: Callable[..., object] | None = getattr(self, "do_" + command.name, None)
        if handler is None:
            return Reply(command.id, name, error=f"no command {command.name!r} here: this worker runs another version")
        try:
            return Reply(command.id, name, handler(**command.arguments))
        except Exception as error:  # a faulty request is the asker's to see, and must not end the worker
            return Reply(command.id, name, error=f"{type(error).__name__}: {error}")

    # Inspect -------------------------------------------------------------------------------------------------

    def do_ping(self) -> object:
        """Alive."""
        return "pong"

    def do_stats(self) -> object:
        """Counts, load, memory."""
        worker = self._worker
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **worker_info(worker),
            "uptime": time.time() - worker.started_at,
            "tasks": dict(worker.logic.counts),
            "held_frames": len(worker.logic.held),
            "broker": getattr(worker.broker, "stats", dict)(),
            **vitals([os.getpid(), *(lane.pid for lane in worker.lanes)]),
            "lanes": [{"number": lane.number, "pid": lane.pid} for lane in worker.lanes],
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }

    def do_active(self) -> object:
        """Calls that run now."""
        worker, now = self._worker, time.time()
        running = []
        for lane in worker.lanes:
            serial, index, started = lane.mark()
            state = worker.logic.lanes.get(lane.number)
            if state is not None and state.is_async:  # many at once, and no mark of when each began
                for each in list(state.given.values()):
                    frame, open_now = each.piece.held.frame, sorted(each.open)[:_ACTIVE_LIMIT]
                    running += [_row(frame.run, number, frame.function.name, lane.pid, None) for number in open_now]
                continue
            given = state.given.get(serial) if state else None
            if given is not None:
                frame = given.piece.held.frame
                running.append(_row(frame.run, index, frame.function.name, lane.pid, now - started))
        return running

    def do_reserved(self) -> object:
        """Calls that wait here for a lane."""
        return self._rows(list(self._worker.logic.waiting))

    @staticmethod
    def _rows(pieces: Sequence[Piece]) -> object:
        rows = [
            _row(piece.held.frame.run, index, piece.held.frame.function.name)
            for piece in pieces
            for index in range(piece.first, piece.first + min(piece.count, _ACTIVE_LIMIT))
        ]
        return rows[:_ACTIVE_LIMIT]

    def do_scheduled(self) -> object:
        """Calls held back by a rate limit. Delays are kept by the broker, and are not here."""
        return self._rows(list(self._worker.logic.slowed))

    def do_revoked(self) -> object:
        """What is never to be started here."""
        return [f"{run}:{a}-{a + n - 1}" for run, spans in self._worker.logic.revoked.items() for a, n in spans]

    def do_registered(self) -> object:
        """Functions that have been run here, by name."""
        return sorted(set(self._worker.logic.names.values()))

    def do_conf(self) -> object:
        """How this worker was started."""
        options = self._worker.options
        return {
            "broker": self._worker.broker.url,
            "backend": self._worker.backend.url,
            "queues": self._worker.intake.serving,
            "paused": self._worker.intake.paused,
            "limits": self._worker.logic.limits.told(),
            "concurrency": self._worker.logic.concurrency,
            "pool": options.pool,
            "lease": self._worker.consumer.lease,
            "linger": options.linger,
            "key_id": self._worker.signer.key_id,
        }

    # Control -------------------------------------------------------------------------------------------------

    def do_revoke(self, tasks: Any = (), spans: Any = (), terminate: bool = False, remember: bool = True) -> object:
        """Never start these; `running` lists those that go on to their end. `remember`: other workers are to know."""
        every = [(*split_task_id(task), 1) for task in tasks] + [tuple(span) for span in spans]
        if remember:
            self._worker.backend.revoke_many(every)
        running = self._worker.revoke(every, terminate)
        return {"running": [f"{run}:{index}" for run, index in running]}

    def do_shutdown(self) -> object:
        """Finish what runs and end."""
        self._worker.stop()
        return "ok"

    def do_pool_grow(self, n: int = 1) -> object:
        """More lanes."""
        return {"concurrency": self._worker.resize(_whole(n))}

    def do_pool_shrink(self, n: int = 1) -> object:
        """Fewer lanes."""
        return {"concurrency": self._worker.resize(-_whole(n))}

    def do_pause(self, queue: str) -> object:
        """Take nothing more from a queue for now."""
        return self._worker.intake.pause(queue)

    def do_resume(self, queue: str) -> object:
        """Take from it again."""
        return self._worker.intake.resume(queue)

    def do_add_consumer(self, queue: str) -> object:
        """Serve one queue more."""
        return self._worker.intake.add(queue)

    def do_cancel_consumer(self, queue: str) -> object:
        """Serve it no more."""
        return self._worker.intake.cancel(queue)

    def do_rate_limit(self, task: str, rate: str | float | None) -> object:
        """So many calls of a function a second, here."""
        calls = per_second(rate)
        self._worker.limit(lambda limits: limits.limit_rate(task, calls, time.time()))
        return self._worker.logic.limits.told()

    def do_time_limit(self, task: str, hard: float | None = None, soft: float | None = None) -> object:
        """How long a call of a function may run, here."""
        checked = seconds_or_none("hard", hard), seconds_or_none("soft", soft)
        self._worker.limit(lambda limits: limits.limit_time(task, *checked))
        return self._worker.logic.limits.told()

    def do_outcomes(self, peer: str, run: str, spans: Any) -> object:
        """Tell again what is remembered of a run; for results that are kept nowhere else."""
        found = self._worker.backend.fetch_many(run, [tuple(span) for span in spans])
        self._worker.bus.post_many([Note(peer, "outcomes", record.data) for record in found])
        return len(found)

    def do_schedules(self) -> object:
        """Schedules have come or gone: look at once."""
        self._worker.clock.wake()
        return "ok"

    def do_watch(self, peer: str, seconds: float = 10.0) -> object:
        """Tell events to a peer for so long."""
        with self._lock:
            self._watchers[peer] = time.monotonic() + seconds
        return "ok"

    def do_follow(self, run: str, peer: str, seconds: float = 10.0) -> object:
        """Tell a peer for so long what becomes of a run, besides the session that submitted it."""
        now = time.monotonic()
        with self._lock:
            for name in [name for name, peers in self._followers.items() if max(peers.values()) <= now]:
                del self._followers[name]
            self._followers.setdefault(run, {})[peer] = now + seconds
        return "ok"

    def followers(self, run: str) -> list[str]:
        """Who follows a run now."""
        if run not in self._followers:
            return []
        now = time.monotonic()
        with self._lock:
            return [peer for peer, until in self._followers.get(run, {}).items() if until > now]

    # Events --------------------------------------------------------------------------------------------------

    def ended(self, run: str, first: int, count: int, states: bytes) -> None:
        """Calls have ended."""
        if not self._watchers:
            return
        name = self._worker.logic.runs.get(run, "")
        for state in sorted(set(states)) if states else [DONE]:
            number = states.count(state) if states else count
            kind = {DONE: "task-done", FAILED: "task-failed", CANCELLED: "task-cancelled"}.get(state, "task-lost")
            self._events.append(Event(kind, time.time(), self._worker.options.name, run, first, number, name))

    def progressed(self, progress: Progress) -> None:
        """A call runs, or will be tried again."""
        if self._watchers and not (progress.output or progress.steps):
            kind, name = "task-" + STATES[progress.state], self._worker.logic.runs.get(progress.run, "")
            for index in progress.indices:
                self._events.append(Event(kind, progress.at, progress.worker, progress.run, index, name=name))

    def events(self) -> list[Note]:
        """What there is to tell, for each watcher whose lease runs."""
        if not self._events:
            return []
        events, self._events = self._events[-_EVENTS_A_TURN:], []
        now, seal = time.monotonic(), self._worker.signer.pack
        with self._lock:
            for peer in [peer for peer, until in self._watchers.items() if until <= now]:
                del self._watchers[peer]
            watchers = list(self._watchers)
        bodies = [seal(NOTE, event) for event in events] if watchers else []
        return [Note(peer, "event", body) for peer in watchers for body in bodies]


def _whole(n: object) -> int:
    if type(n) is not int or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of lanes, 1 or more")
    return n


def worker_info(worker: Worker) -> dict[str, object]:
    """What a worker says of itself with every beat."""
    logic = worker.logic
    return {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "queues": worker.intake.serving,
        "paused": worker.intake.paused,
        "pool": worker.options.pool,
        "concurrency": logic.concurrency,
        "busy": sum(bool(lane.given) for lane in list(logic.lanes.values())),
        "done": logic.counts["done"],
        "failed": logic.counts["failed"],
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "started_at": worker.started_at,
        "key_id": worker.signer.key_id,
        "key_ids": worker.signer.key_ids,
    }


def _row(run: str, index: int, name: str, pid: int | None = None, seconds: float | None = None) -> dict[str, object]:
    row: dict[str, object] = {"id": f"{run}:{index}", "name": name}
    if pid is not None:
        row |= {"pid": pid, "seconds": round(seconds or 0.0, 3)}
    return row
