"""Calls that shall never start: what a session cancels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qnb.codec.outcomes import gaps
from qnb.message import WORKER_PREFIX, split_task_id

if TYPE_CHECKING:
    from qnb.session.session import Session


class Revocations:
    """Of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.spans: list[tuple[str, int, int]] = []  # where no backend remembers them
        self._told: set[str] = set()  # names of workers that know of all of these

    def add(self, spans: Sequence[tuple[str, int, int]], terminate: bool = False) -> None:
        """Make sure that these calls never start; with `terminate` kill those that run."""
        session = self._session
        session.flush()
        # In this order nobody slips through: a worker that starts now reads the tombstones after it is present.
        session.backend.revoke_many(spans)
        asked = [peer.peer.removeprefix(WORKER_PREFIX) for peer in session.bus.peers(WORKER_PREFIX)]
        replies = session.control.revoke_spans(spans, terminate=terminate, to=asked)
        if not session.backend.blobs:  # workers that come later are told by this session
            self.spans += spans
            self._told |= set(asked)
        if len(replies) < len(asked) or getattr(session.bus, "mute", False):
            return  # one that does not answer, or cannot be seen, may be running them: its own outcome tells
        running = [split_task_id(task) for reply in replies.values() for task in reply.get("running", ())]
        for run, first, count in spans:
            sink: Any = session.collector.sinks.get(run)
            if sink is None:
                continue
            on = [(index, 1) for run_of, index in running if run_of == run]
            for start, length in gaps(first, count, on):
                session.collector.settled(sink, sink.cancelled(start, length))

    def tell_newcomers(self) -> None:
        """Where results travel, revocations do too: tell those workers that have come since."""
        session = self._session
        new = [peer.peer for peer in session.bus.peers(WORKER_PREFIX)]
        new = [peer for peer in new if peer.removeprefix(WORKER_PREFIX) not in self._told]
        if new:
            session.control.tell([("revoke", {"spans": self.spans, "remember": False})], new)
            self._told |= {peer.removeprefix(WORKER_PREFIX) for peer in new}
