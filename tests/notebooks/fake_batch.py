"""A stand-in for Batch with the members that views use, moved by hand or by a thread of its own."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qnb.message import DONE, FAILED, QUEUED, RUNNING, STATES, Failure
from qnb.session import frame
from qnb.session.columns import Columns

MESSAGES = {"ValueError": "seed must be positive, got -3", "ZeroDivisionError": "division by zero"}
TRACEBACK = """Traceback (most recent call last):
  File "<cell 3>", line 4, in simulate
    raise {kind}({message!r})
{kind}: {message}
"""


class FakeBatch:
    """`total` calls of simulate(seed, density); `advance` moves one, `play` all of them in so many seconds."""

    def __init__(self, total: int, *, name: str = "simulate", failing: float = 0.0, lanes: int = 4) -> None:
        self.run, self.name = f"3f9c2a7e{total:x}-0", name
        self.created_at = time.time()
        self.finished_at: float | None = None
        self.cancels = self.grouped = 0
        sides = ["left", "right"]
        densities = [0.4 + index % 41 / 100 for index in range(total)]
        self.parameters: list[tuple[str, list[Any]]] = [
            ("seed", list(range(total))),
            ("density", densities),
            ("side", [sides[index % 2] for index in range(total)]),
        ]
        self.data = Columns(total)
        self.data.queue(0, total, self.created_at, QUEUED)
        self._recent: deque[int] = deque(maxlen=64)
        self._failing, self._lanes = failing, lanes
        self._callbacks: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self.data.count

    @property
    def counts(self) -> Counter[str]:
        return Counter({name: self.data.states.count(code) for code, name in enumerate(STATES)})

    @property
    def columns(self) -> list[str]:
        return [*(name for name, _ in self.parameters), *frame.FIXED]

    @property
    def over(self) -> bool:
        return self._ended() == len(self)

    def _ended(self) -> int:
        return sum(self.data.states.count(code) for code in range(DONE, len(STATES)))

    @property
    def listeners(self) -> int:
        return len(self._callbacks)

    def rate(self) -> float:
        return self._ended() / max(0.001, time.time() - self.created_at)

    def eta(self) -> float | None:
        rate = self.rate()
        return (len(self) - self._ended()) / rate if rate else None

    def recent(self, count: int) -> list[int]:
        seen: dict[int, None] = {}
        for index in reversed(self._recent):
            seen.setdefault(index)
        return list(itertools.islice(seen, count))[::-1]

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return frame.display_rows(self, indices)  # type: ignore[arg-type]

    def failures_grouped(self) -> list[tuple[str, int, str]]:
        self.grouped += 1
        groups = Counter(failure.type_name for failure in list(self.data.failures.values()))
        return [(kind, number, MESSAGES[kind]) for kind, number in groups.most_common()]

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def move(self, indices: Iterable[int], state: str) -> None:
        """Bring calls to a state, as one change."""
        now, code, data = time.time(), STATES.index(state), self.data
        for index in indices:
            data.workers[index] = data.worker_number(f"here-{index % 2}")
            data.attempts[index] = 2 if index % 97 == 5 else 1
            if code == RUNNING or not data.started[index]:
                data.started[index] = now
            if code >= DONE:
                data.finished[index] = now
                self._recent.append(index)
                self._end(index, code)
            data.states[index] = code
        if self.over:
            self.finished_at = now
        for callback in list(self._callbacks):
            callback()

    def _end(self, index: int, code: int) -> None:
        if code == DONE:
            self.data.values[index] = {"crossed": index % 3 == 0, "minutes": random.Random(index).randrange(90, 900)}
            if index % 5 == 0:
                self.data.outputs[index] = f"simulating {index}\n" * 3
        elif code == FAILED:
            kind = list(MESSAGES)[index % 7 == 0]
            traceback = TRACEBACK.format(kind=kind, message=MESSAGES[kind])
            self.data.failures[index] = Failure(kind, MESSAGES[kind], traceback)

    def finish(self) -> None:
        """End every call that has not ended."""
        self.move([i for i, state in enumerate(self.data.states) if state < DONE], "done")

    def cancel(self) -> int:
        self.cancels += 1
        queued = [i for i, state in enumerate(self.data.states) if state == QUEUED]
        self.move(queued, "cancelled")
        return len(queued)

    def retry(self) -> FakeBatch:
        return FakeBatch(self.data.states.count(FAILED), name=self.name).play(0.5)

    def play(self, seconds: float, step: int = 1) -> FakeBatch:
        """Run all calls on a thread, `step` at a time."""
        threading.Thread(target=self._play, args=(seconds, step), daemon=True).start()
        return self

    def _play(self, seconds: float, step: int) -> None:
        begun = time.monotonic()
        for first in range(0, len(self), step):
            indices = [i for i in range(first, min(first + step, len(self))) if self.data.states[i] == QUEUED]
            self.move(indices, "running")
            time.sleep(max(0.0, begun + seconds * (first + step) / len(self) - time.monotonic()))
            for index in indices:
                self.move([index], "failed" if random.Random(index).random() < self._failing else "done")

    def _ipython_display_(self) -> None:
        from qnb.notebook import batch_view

        batch_view.display(self)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        from qnb.notebook import fallback

        return fallback.batch_text(self)  # type: ignore[arg-type]
