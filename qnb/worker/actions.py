"""What the logic of a worker tells its loop to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qnb.brokers.base import Delivery
from qnb.message import Blob, Frame, Outcomes, Progress
from qnb.worker.protocol import Work


@dataclass(frozen=True, slots=True)
class Deal:
    """Send a work to a lane."""

    lane: int
    work: Work


@dataclass(frozen=True, slots=True)
class Kill:
    """End a lane."""

    lane: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a lane."""

    is_async: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Store sealed outcomes and tell them to `reply_to`; if `doubtful`, only of calls that have none yet.

    `aside`: files with what their values have put aside, to be stored before.
    """

    run: str
    first: int
    count: int
    states: bytes
    data: bytes
    reply_to: str
    doubtful: bool = False
    aside: Sequence[tuple[str, Blob]] = ()


@dataclass(frozen=True, slots=True)
class Conclude:
    """Seal and keep outcomes that no lane could report."""

    outcomes: Outcomes
    reply_to: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell progress to `reply_to`."""

    progress: Progress
    reply_to: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Seal a frame and put it on a queue."""

    frame: Frame
    queue: str
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Ack:
    """The frame is done with."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Release:
    """The frame goes back to the queue, for after `delay` seconds."""

    delivery: Delivery
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reject:
    """The frame goes to the dead letters."""

    delivery: Delivery
    reason: str


Action = Deal | Kill | Spawn | Keep | Conclude | Tell | Publish | Ack | Release | Reject
