"""Why nothing happens: no worker, or one with another key."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qnb.errors import BadSignature
from qnb.message import WORKER_PREFIX
from qnb.monitor.control import read_info, same_key

if TYPE_CHECKING:
    from qnb.session.session import Session

log = logging.getLogger(__name__)

STARTING_SECONDS = 30.0  # in which workers that this session has started may be on their way
_ASKED = 1000  # runs, and spans of each


class Watch:
    """Looks for workers when calls are pending and nothing has been heard for a while."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told = False
        self._since = time.monotonic()

    def look(self) -> None:
        """Nothing has been heard for a while: say why, where that can be seen."""
        session = self._session
        session.revive_workers()
        there = session.bus.peers(WORKER_PREFIX)
        if not session.backend.blobs:
            sinks = list(session.collector.sinks.values())[:_ASKED]
            self._ask({sink.run: sink.missing()[:_ASKED] for sink in sinks}, [p.peer for p in there])
        peers = [info for peer in there if (info := read_info(peer.info)) is not None]
        queues = {queue for info in peers for queue in info.get("queues", ())}
        keys = {info.get("key_id") for info in peers if session.queue in info.get("queues", ())}
        serving = [info for info in peers if session.queue in info.get("queues", ())]
        if keys and not any(same_key(info, session.signer.key_ids) for info in serving):
            error = BadSignature(
                f"the workers on {session.broker_url} have key {', '.join(sorted(map(str, keys)))}, this session has "
                f"{session.signer.key_id}, so they refuse its tasks: give both the same key (QNB_KEY, or the key file)"
            )
            for sink in list(session.collector.sinks.values()):
                for first, count in sink.missing():
                    session.collector.settled(sink, sink.fail(first, count, error))
        elif getattr(session.bus, "mute", False):
            return  # nobody can be seen here
        elif session.local_workers and time.monotonic() - self._since < STARTING_SECONDS:
            return
        elif not self._told and (not peers or session.queue not in queues):
            self._told = True
            served = f" (workers are there for {', '.join(sorted(queues))})" if queues else ""
            log.warning(
                "%d calls wait, and no worker serves queue %r of %s%s: start one with `qnb worker URL`",
                session.collector.pending, session.queue, session.broker_url, served,
            )  # fmt: skip

    def ask_again(self, missing: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Results that travel and are kept nowhere (`rpc:`): ask workers for those that a lost note would have told."""
        self._ask(missing, [peer.peer for peer in self._session.bus.peers(WORKER_PREFIX)])

    def _ask(self, missing: Mapping[str, Sequence[tuple[int, int]]], workers: Sequence[str]) -> None:
        peer = self._session.peer
        commands = [
            ("outcomes", {"peer": peer, "run": run, "spans": list(spans)}) for run, spans in missing.items() if spans
        ]
        self._session.control.tell(commands, workers)
