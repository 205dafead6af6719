"""The leases that one consumer of Pub/Sub has given: by this process's clock, to the millisecond."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qnb.brokers.base import Delivery
from qnb.brokers.pubsub.shelf import LONGEST_DEADLINE, MARGIN

if TYPE_CHECKING:
    from qnb.brokers.pubsub.pulls import Source

# Leases beyond the server's longest deadline are renewed this long before it ends.
RENEW_SECONDS = 60.0
_NEVER = float("inf")


@dataclass(eq=False, slots=True)
class Held:
    """The token of a delivery. `until` is when its lease ends; `renew_at`, when the server's does, nearly."""

    source: Source
    ack_id: str
    delivery: Delivery | None = None  # while it is alive
    until: float = 0.0
    renew_at: float = 0.0

    @property
    def alive(self) -> bool:
        """Handed out, and neither settled nor lapsed."""
        return self.delivery is not None


class Leases:
    """Which deliveries are unsettled, and when they lapse. Not safe from several threads: the consumer sees to it."""

    def __init__(self) -> None:
        self.unsettled = 0
        self._ends: list[tuple[float, int, list[Held]]] = []
        self._noted = 0
        self._numbers = itertools.count()

    def give(self, deliveries: Sequence[Delivery], now: float, seconds: float) -> float:
        """Begin leases; when to come again."""
        for delivery in deliveries:
            delivery.token.delivery = delivery
        self.unsettled += len(deliveries)
        return self._note([delivery.token for delivery in deliveries], now, seconds)

    def change(self, deliveries: Sequence[Delivery], now: float, seconds: float) -> tuple[list[Held], float]:
        """Those whose lease now lasts so long from now; when to come again."""
        held = [each.token for each in deliveries if each.token.alive and each.token.until > now]
        return held, self._note(held, now, seconds) if held else _NEVER

    def take(self, deliveries: Iterable[Delivery], now: float) -> list[Delivery]:
        """Those whose leases are not over; they no longer are unsettled."""
        mine = [each for each in deliveries if each.token.alive and each.token.until > now]
        for each in mine:
            each.token.delivery = None
        self.unsettled -= len(mine)
        return mine

    def take_all(self) -> list[Delivery]:
        """All that are unsettled; now none is."""
        found = {id(held): held.delivery for _, _, batch in self._ends for held in batch if held.delivery is not None}
        for delivery in found.values():
            delivery.token.delivery = None
        self._ends.clear()
        self._noted = self.unsettled = 0
        return list(found.values())

    def due(self, now: float) -> tuple[list[Held], list[Held], float]:
        """What has lapsed, what the server is to be told of again, and when to come again."""
        lapsed: list[Held] = []
        renewed: list[Held] = []
        while self._ends and self._ends[0][0] <= now:
            batch = heapq.heappop(self._ends)[2]
            self._noted -= len(batch)
            for held in batch:
                if held.alive and held.until <= now:
                    held.delivery = None
                    lapsed.append(held)
                elif held.alive and 0.0 < held.renew_at <= now:
                    renewed.append(held)
        for until in {held.until for held in renewed}:
            self._note([held for held in renewed if held.until == until], now, until - now)
        self.unsettled -= len(lapsed)
        return lapsed, renewed, self._ends[0][0] if self._ends else _NEVER

    def _note(self, held: list[Held], now: float, seconds: float) -> float:
        until = now + seconds
        renew_at = now + LONGEST_DEADLINE - RENEW_SECONDS if seconds + MARGIN > LONGEST_DEADLINE else 0.0
        for each in held:
            each.until, each.renew_at = until, renew_at
        heapq.heappush(self._ends, (renew_at or until, next(self._numbers), held))
        self._noted += len(held)
        if self._noted > 10_000 + 4 * self.unsettled:  # mostly settled ones, under long leases
            self._ends = [(at, n, left) for at, n, batch in self._ends if (left := [h for h in batch if h.alive])]
            heapq.heapify(self._ends)
            self._noted = sum(len(batch) for _, _, batch in self._ends)
        return renew_at or until
