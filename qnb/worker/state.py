"""What the logic of a worker knows of frames, of pieces of them, and of lanes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from qnb.brokers.base import Delivery
from qnb.message import Frame

if TYPE_CHECKING:
    from qnb.worker.graph import Gathering


class Held(msgspec.Struct, eq=False):
    """A frame on a lease. `left` counts calls that are not accounted for.

    `doubtful`: another worker has or had it too, so that some of its calls may get their outcome elsewhere.
    `inputs`: by index, the values of other calls that a call is to get.
    """

    frame: Frame
    delivery: Delivery
    left: int
    begun: bool = False
    lost: str | None = None
    doubtful: bool = False
    inputs: dict[int, Sequence[Gathering]] = {}

    def values(self, first: int, count: int) -> dict[str, bytes]:
        """What these calls get of others, by task id."""
        found: dict[str, bytes] = {}
        for index in range(first, first + count) if self.inputs else ():
            for gathering in self.inputs.get(index, ()):
                found |= gathering.values
        return found


class Piece(msgspec.Struct, eq=False):
    """Calls of a held frame that wait for a lane."""

    held: Held
    first: int
    count: int


class Given(msgspec.Struct, eq=False):
    """A work that a lane has; `seconds` is the estimate, None when the function was never timed.

    `open` is of an async lane alone, where calls end in any order: the indices that have not.
    """

    piece: Piece
    serial: int
    seconds: float | None
    told: int = -1
    open: set[int] = set()


class LaneState(msgspec.Struct, eq=False):
    """A lane as the logic sees it: what it has been given, in order, and which functions it knows."""

    number: int
    is_async: bool
    given: dict[int, Given] = {}
    known: dict[bytes, None] = {}
    verdict: tuple[str, int] | None = None  # why it is being killed: ("timeout" or "terminate", index)
    timeout: float = 0.0  # seconds, of that verdict
    retiring: bool = False

    @property
    def ahead(self) -> float:
        """Seconds of work it has, as estimated; infinite when unknown."""
        return sum(math.inf if g.seconds is None else g.seconds for g in self.given.values())
