"""Inspect and control workers, by one implementation over the Bus of any broker."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

from qnb.brokers.base import Bus, Presence
from qnb.codec.signing import NOTE, Signer, decode
from qnb.errors import BadMessage
from qnb.message import WORKER_PREFIX, Command, Note, Reply, is_task_id, split_task_id

if TYPE_CHECKING:
    import pandas as pd

_numbers = itertools.count()


class Reader(Protocol):
    """Who reads the asker's inbox: a session's collector."""

    replies: dict[str, list[Reply]]
    listening: int

    def wait(self, done: Any, condition: threading.Condition, timeout: float | None) -> bool: ...


class Control:
    """Each call takes `to=[worker, …]` (default all) and `timeout` seconds, and returns {worker: reply}.

    A worker that does not answer in time is left out; one that could not do it has {"error": …}.
    """

    def __init__(
        self,
        bus: Bus,
        signer: Signer,
        peer: str,
        reader: Reader,
        remember: Callable[[Sequence[tuple[str, int, int]]], None] | None = None,
    ) -> None:
        self._remember = remember
        self._bus = bus
        self._signer = signer
        self._peer = peer
        self._reader = reader

    def ask(
        self, command: str, arguments: dict[str, Any], to: Sequence[str] | None = None, timeout: float = 1.0
    ) -> dict[str, Any]:
        """Send a command by name, and gather what is answered within `timeout`; returns once all have answered."""
        names = (
            list(to) if to is not None else [p.peer.removeprefix(WORKER_PREFIX) for p in self._bus.peers(WORKER_PREFIX)]
        )
        if not names:
            return {}
        ticket = f"{self._peer}.{next(_numbers)}"
        body = self._signer.pack(NOTE, Command(command, arguments, ticket, self._peer))
        replies = self._reader.replies[ticket] = []
        self._reader.listening += 1
        try:
            self._bus.post_many([Note(WORKER_PREFIX + name, "command", body) for name in names])
            self._reader.wait(lambda: len(replies) >= len(names), threading.Condition(), timeout)
        finally:
            self._reader.listening -= 1
            del self._reader.replies[ticket]
        return {r.worker: r.value if r.error is None else {"error": r.error} for r in replies}

    def tell(self, commands: Sequence[tuple[str, dict[str, Any]]], workers: Sequence[str] | None = None) -> None:
        """Send commands (name, arguments) to workers, by default to all, and wait for no answer."""
        if not commands:
            return
        peers = [peer.peer for peer in self._bus.peers(WORKER_PREFIX)] if workers is None else workers
        bodies = [self._signer.pack(NOTE, Command(name, arguments, "", "")) for name, arguments in commands]
        self._bus.post_many([Note(peer, "command", body) for peer in peers for body in bodies])

    # Inspect -------------------------------------------------------------------------------------------------

    def ping(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Who is alive: {worker: "pong"}."""
        return self.ask("ping", {}, to, timeout)

    def stats(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Counts, lanes, load, memory in bytes, uptime in seconds."""
        return self.ask("stats", {}, to, timeout)

    def active(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Calls that run now: [{id, name, pid, seconds}]."""
        return self.ask("active", {}, to, timeout)

    def reserved(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Calls that a worker holds and has not started: [{id, name}]."""
        return self.ask("reserved", {}, to, timeout)

    def scheduled(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Calls that a worker holds for later."""
        return self.ask("scheduled", {}, to, timeout)

    def revoked(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Spans of calls never to be started: ["run:first-last"]."""
        return self.ask("revoked", {}, to, timeout)

    def registered(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Names of the functions that have been run."""
        return self.ask("registered", {}, to, timeout)

    def conf(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """How each was started."""
        return self.ask("conf", {}, to, timeout)

    # Control -------------------------------------------------------------------------------------------------

    def revoke(
        self, id: str | Sequence[str], terminate: bool = False, to: Sequence[str] | None = None, timeout: float = 1.0
    ) -> dict[str, Any]:
        """Never start these tasks; with `terminate` kill those that run. {worker: {"running": [id, …]}}.

        It is written down in the backend too, so that workers that start later know.
        """
        tasks = [id] if isinstance(id, str) else list(id)
        if self._remember is not None:
            self._remember([(*split_task_id(task), 1) for task in tasks if is_task_id(task)])
        arguments = {"tasks": tasks, "terminate": terminate, "remember": self._remember is None}
        return self.ask("revoke", arguments, to, timeout)

    def revoke_spans(
        self,
        spans: Sequence[tuple[str, int, int]],
        terminate: bool = False,
        to: Sequence[str] | None = None,
        timeout: float = 1.0,
    ) -> dict[str, Any]:
        """The same for (run, first, count) spans, which the caller has written down in the backend."""
        arguments = {"spans": list(spans), "terminate": terminate, "remember": False}
        return self.ask("revoke", arguments, to, timeout)

    def shutdown(self, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Finish what runs and end."""
        return self.ask("shutdown", {}, to, timeout)

    def pool_grow(self, n: int = 1, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """So many lanes more."""
        return self.ask("pool_grow", {"n": n}, to, timeout)

    def pool_shrink(self, n: int = 1, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """So many lanes fewer; those that are busy end after their call. At least one stays."""
        return self.ask("pool_shrink", {"n": n}, to, timeout)

    def pause(self, queue: str, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Take nothing more from a queue until it is resumed; what was taken is finished."""
        return self.ask("pause", {"queue": queue}, to, timeout)

    def resume(self, queue: str, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Take from a paused queue again."""
        return self.ask("resume", {"queue": queue}, to, timeout)

    def add_consumer(self, queue: str, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Serve one queue more; it is made when it is not there."""
        return self.ask("add_consumer", {"queue": queue}, to, timeout)

    def cancel_consumer(self, queue: str, to: Sequence[str] | None = None, timeout: float = 1.0) -> dict[str, Any]:
        """Serve a queue no more; what was taken from it is finished."""
        return self.ask("cancel_consumer", {"queue": queue}, to, timeout)

    def rate_limit(
        self, task: str, rate: str | float | None, to: Sequence[str] | None = None, timeout: float = 1.0
    ) -> dict[str, Any]:
        """Each worker starts at most so many calls of a function, named as `registered` shows it: "10/s", "600/m",
        "5/h" or a number a second; "0" removes the limit."""
        return self.ask("rate_limit", {"task": task, "rate": rate}, to, timeout)

    def time_limit(
        self,
        task: str,
        hard: float | None = None,
        soft: float | None = None,
        to: Sequence[str] | None = None,
        timeout: float = 1.0,
    ) -> dict[str, Any]:
        """Seconds that a call of a function may run, in place of what it was submitted with. `hard` also holds for
        calls that run, `soft` for those that start from now on; both None: as submitted."""
        return self.ask("time_limit", {"task": task, "hard": hard, "soft": soft}, to, timeout)


def read_info(info: bytes) -> dict[str, Any] | None:
    """What a peer says of itself. It is not signed, so that anything may stand there: None when it is no table."""
    try:
        found = decode(info, dict[str, Any]) if info else {}
    except BadMessage:
        return None
    for name in ("queues", "key_ids"):
        words = found.get(name, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return None
    return found if isinstance(found.get("key_id"), (str, NoneType)) else None


def same_key(info: Mapping[str, Any], key_ids: Sequence[str]) -> bool:
    """Whether a peer reads what the first of these keys signs, and what it signs itself is read with one of them."""
    return key_ids[0] in info.get("key_ids", [info.get("key_id")]) and info.get("key_id") in key_ids


class Workers:
    """The workers that were present when asked: a sequence of dicts, and a table; live in a notebook."""

    def __init__(self, peers: Sequence[Presence], session: Any = None) -> None:
        self.session = session  # who asked; the live view asks on
        self._rows = [
            {"worker": peer.peer.removeprefix(WORKER_PREFIX), **info}
            for peer in peers
            if (info := read_info(peer.info)) is not None
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [row["worker"] for row in self._rows]

    @property
    def df(self) -> pd.DataFrame:
        """One row a worker."""
        import pandas as pd

        columns = [
            "worker",
            "host",
            "pid",
            "concurrency",
            "busy",
            "done",
            "failed",
            "pool",
            "queues",
            "python",
            "started_at",
        ]
        frame = pd.DataFrame(self._rows, columns=columns)
        frame["started_at"] = pd.to_datetime(frame["started_at"], unit="s", utc=True)
        return frame.set_index("worker")

    def _ipython_display_(self) -> None:
        from qnb.notebook.workers_view import display

        display(self)

    def _display_(self) -> object:
        """As marimo asks for it."""
        from qnb.notebook.workers_view import WorkersView

        return WorkersView(self).widget()

    def __repr__(self) -> str:
        if not self._rows:
            return "no workers: start one with `qnb worker URL`, or Session(workers=2)"
        return repr(self.df)

    def _repr_html_(self) -> str:
        if not self._rows:
            return "<p>No workers. Start one with <code>qnb worker URL</code>, or <code>Session(workers=2)</code>.</p>"
        return str(self.df._repr_html_())
