"""What a consumer holds, and what it knows of messages that a broken connection took away. Nothing here talks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from qnb.brokers.base import Delivery

BUFFERED, HELD, GONE = range(3)
_REMEMBERED = 10_000  # ids of messages that were acked after their connection broke


class Held:
    """A message. `channel` is where it can be settled by its `tag`; None when that is gone."""

    __slots__ = (
        "body", "channel", "deadline", "deliveries", "id", "priority", "queue", "since", "state", "tag", "uncounted",
        "urgent",
    )  # fmt: skip

    def __init__(self, queue: str, urgent: bool, name: str, body: bytes, deliveries: int, priority: int) -> None:
        self.queue, self.urgent, self.id, self.body = queue, urgent, name, body
        self.deliveries, self.priority = deliveries, priority
        self.tag = 0
        self.channel: Any = None
        self.since = time.monotonic()
        self.deadline = 0.0
        self.state = BUFFERED
        # The server says that it was delivered before, not how often: a copy has to say it before it is handed out.
        self.uncounted = False


class Ledger:
    """The messages of one consumer. All under the consumer's lock."""

    def __init__(self) -> None:
        self.buffer: list[Held] = []  # here, and handed out to nobody
        self.held: dict[Held, None] = {}
        self._unacked: dict[int, Held] = {}  # of the present channel, by tag, in order
        self._orphans: dict[str, Held] = {}  # held, but with their connection gone
        self._done: dict[str, None] = {}  # acked when their connection was gone

    def add(self, held: Held) -> None:
        """It has come."""
        self._unacked[held.tag] = held
        self.buffer.append(held)

    def has(self, tag: int) -> bool:
        """Whether the message of this tag is not acked."""
        return tag in self._unacked

    def remember(self, settled: Iterable[Held]) -> None:
        """These were to be acked when their connection broke."""
        for held in settled:
            self._done[held.id] = None

    def known(self, came: Held, now: float) -> bool:
        """Whether this is one that was held when a connection broke: then it is held on, or is GONE: to be acked."""
        if came.id in self._done:
            del self._done[came.id]
            came.state = GONE
            return True
        orphan = self._orphans.pop(came.id, None) if came.id else None
        if orphan is None or orphan.state != HELD or orphan.deadline <= now:
            return False
        orphan.tag, orphan.channel, orphan.since = came.tag, came.channel, came.since
        self._unacked[came.tag] = orphan
        return True

    def take(self, count: int, deadline: float) -> list[Held]:
        """Hand out so many, the most urgent first."""
        self.buffer.sort(key=lambda held: -held.priority)
        taken = self.buffer[:count]
        del self.buffer[:count]
        for held in taken:
            if not held.uncounted:
                held.state, held.deadline = HELD, deadline
                self.held[held] = None
        return taken

    def settle(self, deliveries: Iterable[Delivery], now: float, remember: bool = False) -> list[Held]:
        """Those whose leases are not over; they are no longer held. `remember` what cannot be acked now."""
        settled = []
        for delivery in deliveries:
            held: Held = delivery.token
            if held.state == HELD and held.deadline > now:
                held.state = GONE
                self.held.pop(held, None)
                settled.append(held)
                if held.channel is None:
                    self._orphans.pop(held.id, None)
                    if remember and held.id:
                        self._done[held.id] = None
        while len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]
        return settled

    def restore(self, settled: Iterable[Held]) -> None:
        """It could not be settled after all."""
        for held in settled:
            if held.channel is not None:
                held.state = HELD
                self.held[held] = None

    def acks(self, tags: Sequence[int]) -> list[tuple[int, bool]]:
        """(tag, multiple) of the fewest acks for these tags of the present channel."""
        wanted = set(tags)
        last = 0
        for tag in self._unacked:
            if tag not in wanted:
                break
            last = tag
        rest = sorted(tag for tag in wanted if tag > last)
        for tag in wanted:
            self._unacked.pop(tag, None)
        return [*([(last, True)] if last else []), *((tag, False) for tag in rest)]

    def strays(self, queues: Sequence[str]) -> list[Held]:
        """What is here, was handed out to nobody, and is not of these queues; it is here no longer."""
        strays = [held for held in self.buffer if held.queue not in queues]
        self.buffer = [held for held in self.buffer if held.queue in queues]
        for held in strays:
            held.state = GONE
        return strays

    def extend(self, deliveries: Iterable[Delivery], now: float, seconds: float) -> None:
        """Leases that are not over last so long from now."""
        for delivery in deliveries:
            held: Held = delivery.token
            if held.state == HELD and held.deadline > now:
                held.deadline = now + seconds

    def move(self, held: Held, came: Held) -> int:
        """What is held is another message of the same from now on; the tag to ack: the old one's, or, when it has been
        settled meanwhile, the new one's."""
        if held.state != HELD or held.channel is not came.channel:
            return came.tag
        old, held.tag, held.id, held.since = held.tag, came.tag, came.id, came.since
        self._unacked.pop(old, None)
        self._unacked[held.tag] = held
        return old

    def soonest(self) -> float | None:
        """When the next lease is over."""
        return min((held.deadline for held in self.held), default=None)

    def lapsed(self, now: float) -> list[Held]:
        """Those whose lease is over, and which are no longer held."""
        over = [held for held in self.held if held.deadline <= now]
        for held in over:
            held.state = GONE
            del self.held[held]
            self._unacked.pop(held.tag, None)
            self._orphans.pop(held.id, None)
        return over

    def lose(self) -> None:
        """The channel is gone, and all that was unacked on it is back in its queue."""
        for held in self._unacked.values():
            held.channel = None
            if held.state == HELD and held.id:
                self._orphans[held.id] = held
        self._unacked.clear()
        self.buffer.clear()

    def empty(self, now: float) -> list[Held]:
        """Everything that is here, no longer held."""
        rest = [*(held for held in self.held if held.deadline > now), *self.buffer]
        for held in rest:
            held.state = GONE
        self.held.clear()
        self.buffer.clear()
        return rest
