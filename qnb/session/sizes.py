"""How many calls go into a frame: measured, so that a frame lasts about a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from qnb.message import Function

if TYPE_CHECKING:
    from qnb.session.batch import Batch

FRAME_SECONDS = 0.1
STREAM_CALLS = 256  # single submits: more would only add to the wait of the first
BATCH_CALLS = 4096
UNKNOWN_CALLS = 8
PROBES = 4
PROBE_SECONDS = 0.05
SHARES = 32  # a batch is cut in at least so many frames, so that many workers get some of it


class Sizes:
    """Run times by function, and the frame sizes that follow from them."""

    def __init__(self) -> None:
        self._seconds: dict[bytes, float] = {}

    def learn(self, function: bytes, seconds: float, calls: int) -> None:
        """So many calls took so long in all."""
        each = max(1e-7, seconds / max(1, calls))
        before = self._seconds.get(function)
        self._seconds[function] = each if before is None else 0.7 * before + 0.3 * each

    def known(self, function: Function) -> bool:
        """Whether this version of the function has been timed."""
        return function.hash in self._seconds

    def stream(self, function: Function) -> int:
        """Most calls of a frame of single submits."""
        each = self._seconds.get(function.hash)
        return UNKNOWN_CALLS if each is None else max(1, min(STREAM_CALLS, int(FRAME_SECONDS / each)))

    def frame(self, function: Function, count: int) -> int:
        """Calls of a frame in a batch of `count`."""
        each = self._seconds.get(function.hash)
        if each is None:
            return max(1, math.ceil(count / 2048))
        share = max(1, math.ceil(count / SHARES)) if each * count > 0.01 else count
        return max(1, min(BATCH_CALLS, int(FRAME_SECONDS / each), share))

    def to_try(self, function: Function, count: int) -> int:
        """How many calls of a batch to send one by one, before the rest."""
        return PROBES if count > 2 * PROBES and not self.known(function) else 0

    def wait(self, batch: Batch, wait_for: Callable[..., bool]) -> None:
        """Wait a moment for the probes; a slow function, or no worker, is not waited for."""
        wait_for(lambda: self.known(batch.function), batch._condition, PROBE_SECONDS)
