"""A bus without mailboxes, for those who may make none: nobody hears anything, outcomes come from the backend."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qnb.brokers.base import Presence
from qnb.brokers.memory.bus import Gate
from qnb.message import Note


class MuteInbox:
    """See Inbox of the ports."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._gate = Gate()
        self._woken = self._closed = False

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        end = time.monotonic() + timeout
        while not (self._woken or self._closed) and (now := time.monotonic()) < end:
            self._gate.wait(end - now)
        self._woken = False
        return []

    def beat(self, info: bytes = b"") -> None:
        pass

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        self._closed = True
        self._gate.open()


class MuteBus:
    """See Bus of the ports."""

    mute = True  # nobody can be seen, which is no sign that nobody is there

    def join(self, peer: str) -> MuteInbox:
        return MuteInbox(peer)

    def post_many(self, notes: Sequence[Note]) -> None:
        pass

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        return []

    def close(self) -> None:
        """Nothing is open."""
