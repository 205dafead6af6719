"""A stand-in for Batch with the members that views use, moved by hand or by a thread of its own."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

OUTCOME = (
    "result state error worker attempts queued_at started_at finished_at wait_s runtime_s output task_id".split()  # noqa: SIM905
)
ENDED = ("done", "failed", "cancelled", "lost")
MESSAGES = {"ValueError": "seed must be positive, got -3", "ZeroDivisionError": "division by zero"}


class FakeBatch:
    """`total` calls of simulate(seed, density); `advance` moves one, `play` all of them in so many seconds."""

    def __init__(self, total: int, *, name: str = "simulate", failing: float = 0.0) -> None:
        self.run, self.name = "3f9c2a7e", name
        self.created_at = time.time()
        self.finished_at: float | None = None
        self.version = 0
        self.cancels = 0
        self.grouped = 0
        self.columns = ["seed", "density", *OUTCOME]
        self.counts: Counter[str] = Counter({"queued": total})
        self._states = ["queued"] * total
        self._times: dict[int, list[float]] = {}
        self._recent: deque[int] = deque(maxlen=64)
        self._failing = failing
        self._callbacks: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._states)

    @property
    def over(self) -> bool:
        return sum(self.counts[state] for state in ENDED) == len(self)

    @property
    def listeners(self) -> int:
        return len(self._callbacks)

    def rate(self) -> float:
        done = sum(self.counts[state] for state in ENDED)
        return done / max(0.001, time.time() - self.created_at)

    def eta(self) -> float | None:
        rate = self.rate()
        left = sum(number for state, number in self.counts.items() if state not in ENDED)
        return left / rate if rate else None

    def recent(self, count: int) -> list[int]:
        seen: dict[int, None] = {}
        for index in reversed(self._recent):
            seen.setdefault(index)
        return list(itertools.islice(seen, count))[::-1]

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._row(index) for index in indices]

    def _row(self, index: int) -> dict[str, Any]:
        state = self._states[index]
        started, finished = (*self._times.get(index, []), None, None)[:2]
        kind = list(MESSAGES)[index % 7 == 0]
        return {
            "seed": index,
            "density": 0.4 + index % 41 / 100,
            "result": f"{{'crossed': {index % 3 == 0}, 'minutes': {random.Random(index).randrange(90, 900)}}}",
            "state": state,
            "error": f"{kind}: {MESSAGES[kind]}" if state == "failed" else None,
            "worker": f"here-{index % 2}" if started else "",
            "attempts": 2 if index % 97 == 5 else 1,
            "started_at": started,
            "runtime_s": finished - started if started and finished else None,
        }

    def failures_grouped(self) -> list[tuple[str, int, str]]:
        self.grouped += 1
        failed = self.counts["failed"]
        zero = failed // 7
        groups = [("ValueError", failed - zero), ("ZeroDivisionError", zero)]
        return [(kind, number, MESSAGES[kind]) for kind, number in groups if number]

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def move(self, indices: Iterable[int], state: str) -> None:
        """Bring calls to a state, as one change."""
        now = time.time()
        for index in indices:
            self.counts[self._states[index]] -= 1
            self.counts[state] += 1
            self._states[index] = state
            if state in ENDED:
                self._recent.append(index)
            self._times.setdefault(index, []).append(now)
        self.version += 1
        if self.over:
            self.finished_at = now
        for callback in list(self._callbacks):
            callback()

    def finish(self) -> None:
        """End every call that has not ended."""
        self.move([i for i, state in enumerate(self._states) if state not in ENDED], "done")

    def cancel(self) -> None:
        self.cancels += 1
        self.move([i for i, state in enumerate(self._states) if state == "queued"], "cancelled")

    def play(self, seconds: float, step: int = 1) -> FakeBatch:
        """Run all calls on a thread, `step` at a time."""
        threading.Thread(target=self._play, args=(seconds, step), daemon=True).start()
        return self

    def _play(self, seconds: float, step: int) -> None:
        begun = time.monotonic()
        for first in range(0, len(self), step):
            indices = [i for i in range(first, min(first + step, len(self))) if self._states[i] == "queued"]
            self.move(indices, "running")
            time.sleep(max(0.0, begun + seconds * (first + step) / len(self) - time.monotonic()))
            for index in indices:
                self.move([index], "failed" if random.Random(index).random() < self._failing else "done")

    def _ipython_display_(self) -> None:
        from qnb.notebook import batch_view

        batch_view.display(self)

    def __repr__(self) -> str:
        from qnb.notebook import fallback

        return fallback.batch_text(self)
