"""The queues of a consumer and the levels of each, as far as they are known; opened when they are not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from qnb.brokers.sqs.client import DeletedRecently
from qnb.brokers.sqs.polls import Source
from qnb.brokers.sqs.queues import Place, Queues

# How often a consumer looks for levels that are new, when busy and when idle. One of them is told at once.
LEVELS_SECONDS, IDLE_LEVELS_SECONDS = 5.0, 60.0
# Between tries to open a queue that is not there.
_AGAIN_SECONDS = 0.5


class Sources:
    """What a consumer takes from. Refreshed by the thread that receives, told news by others."""

    def __init__(self, queues: Queues, names: Sequence[str]) -> None:
        self._queues = queues
        self._lock = threading.Lock()
        self.names = list(dict.fromkeys(names))
        self._found: dict[tuple[str, int], Source] = {}
        self._levels_at: dict[str, float] = {}
        self._open_at: dict[str, float] = {}
        self._news = False

    def all(self) -> list[Source]:
        """Those of the highest priority first."""
        with self._lock:
            return sorted(self._found.values(), key=lambda source: -source.place.level)

    @property
    def several(self) -> bool:
        """Whether there are levels, so that one has to look for what comes first."""
        with self._lock:
            return any(level for _, level in self._found)

    def set(self, names: Sequence[str]) -> None:
        """Other queues from now on."""
        with self._lock:
            self.names = list(dict.fromkeys(names))
            for key in [key for key in self._found if key[0] not in self.names]:
                self._found.pop(key).dropped = True

    def tell(self, queue: str, level: int, bell: bool) -> None:
        """There is a level that was new when this was sent."""
        with self._lock:
            if bell or (queue, level) not in self._found:
                self._levels_at[queue] = 0.0
                self._news = True

    def news(self) -> bool:
        """Whether something was told since the last time."""
        news, self._news = self._news, False
        return news

    def refresh(self) -> None:
        """The queues are there, and what is known of their levels is not too old."""
        for source in [source for source in self.all() if source.dropped]:
            self._drop(source)
        now = time.monotonic()
        for name in list(self.names):
            base = self._found.get((name, 0)) or self._open(name, now)
            if base is not None and self._levels_at.get(name, 0.0) <= now:
                idle = base.empty > 0
                self._levels_at[name] = now + (IDLE_LEVELS_SECONDS if idle else LEVELS_SECONDS)
                for place in self._queues.levels(name):
                    self._add(place)

    def _open(self, name: str, now: float) -> Source | None:
        if self._open_at.get(name, 0.0) > now:
            return None
        self._open_at[name] = now + _AGAIN_SECONDS
        try:
            return self._add(self._queues.open(name, patience=0.0))
        except DeletedRecently:
            return None

    def _add(self, place: Place) -> Source | None:
        with self._lock:
            if place.queue not in self.names:
                return None
            return self._found.setdefault((place.queue, place.level), Source(place))

    def _drop(self, source: Source) -> None:
        self._queues.forget(source.place)
        with self._lock:
            key = source.place.queue, source.place.level
            if self._found.get(key) is source:
                del self._found[key]

    def next(self) -> list[float]:
        """When something changes by itself."""
        with self._lock:
            times = [at for name, at in self._open_at.items() if name in self.names and (name, 0) not in self._found]
            return times + [source.blocked_until for source in self._found.values() if not source.polls]
