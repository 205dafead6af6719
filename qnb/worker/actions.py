"""What the logic of a worker tells its loop to do."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qnb.brokers.base import Delivery
from qnb.message import Blob, Frame, Outcomes, Progress
from qnb.worker.protocol import Work


class Deal(msgspec.Struct, frozen=True):
    """Send a work to a lane."""

    lane: int
    work: Work


class Kill(msgspec.Struct, frozen=True):
    """End a lane."""

    lane: int


class Spawn(msgspec.Struct, frozen=True):
    """Start a lane."""

    is_async: bool = False


class Keep(msgspec.Struct, frozen=True):
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


class Conclude(msgspec.Struct, frozen=True):
    """Seal and keep outcomes that no lane could report."""

    outcomes: Outcomes
    reply_to: str


class Tell(msgspec.Struct, frozen=True):
    """Tell progress to `reply_to`."""

    progress: Progress
    reply_to: str


class Publish(msgspec.Struct, frozen=True):
    """Seal a frame and put it on a queue."""

    frame: Frame
    queue: str
    delay: float = 0.0


class Ack(msgspec.Struct, frozen=True):
    """The frame is done with."""

    delivery: Delivery


class Release(msgspec.Struct, frozen=True):
    """The frame goes back to the queue, for after `delay` seconds."""

    delivery: Delivery
    delay: float = 0.0


class Reject(msgspec.Struct, frozen=True):
    """The frame goes to the dead letters."""

    delivery: Delivery
    reason: str


Action = Deal | Kill | Spawn | Keep | Conclude | Tell | Publish | Ack | Release | Reject
