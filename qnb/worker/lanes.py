"""All lanes of a worker, and what wakes its settle thread: a lane that has something to tell, or the bell."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Iterable, Iterator

from qnb.worker.pool import Lane, ProcessLane, ThreadLane
from qnb.worker.protocol import Welcome, Work


class Lanes:
    """Whoever calls holds the worker's lock, but for `ring`, `select`, a look through all of them, and the end."""

    def __init__(self, welcome: Welcome, pool: str) -> None:
        self._welcome = welcome
        self._threads = pool == "thread"
        self._lanes: dict[int, Lane] = {}
        self._last = 0
        self._selector = selectors.DefaultSelector()
        self._events: dict[int, int] = {}  # what the selector waits for, by number
        self._unwatched: set[int] = set()  # numbers of lanes that the selector does not know now
        self._staying: Lane | None = None
        self._bell, self._poke = socket.socketpair()
        self._bell.setblocking(False)
        self._poke.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def __getitem__(self, number: int) -> Lane:
        return self._lanes[number]

    def get(self, number: int) -> Lane | None:
        """One that may be gone."""
        return self._lanes.get(number)

    def spawn(self, is_async: bool) -> int:
        """Start one more; its number."""
        self._last += 1
        if self._threads and not is_async:
            lane: Lane = ThreadLane(self._last, self._welcome)
        else:
            lane = ProcessLane(self._last, self._welcome, is_async=is_async)
        self._lanes[lane.number] = lane
        self._unwatched.add(lane.number)
        self._watch(lane, lane.unsent)
        return lane.number

    def send(self, number: int, work: Work) -> None:
        """Hand a work to a lane; the settle thread is woken by what it tells, unless another stays with it."""
        lane = self._lanes[number]
        lane.send(work)
        if lane is not self._staying:
            self._watch(lane, lane.unsent)

    def flush(self, lane: Lane) -> None:
        """Go on to send what did not fit."""
        if lane.unsent:
            self._watch(lane, not lane.flush())

    def marks(self) -> dict[int, tuple[int, int, float]]:
        """What each is running."""
        return {number: lane.mark() for number, lane in self._lanes.items()}

    def ended(self) -> list[int]:
        """Those whose process has ended."""
        return [number for number, lane in self._lanes.items() if lane.ended()]

    # What wakes the settle thread ----------------------------------------------------------------------------

    def select(self, timeout: float | None) -> list[int]:
        """Wait until the bell rings or a lane has something to tell; the numbers of those that have."""
        told = [key.data for key, _ in self._selector.select(timeout)]
        if None in told:
            with contextlib.suppress(BlockingIOError):
                self._bell.recv(4096)
        return [number for number in told if number is not None]

    def ring(self) -> None:
        """End a `select`."""
        with contextlib.suppress(OSError):  # a full pipe rings already, a closed one has no listener
            self._poke.send(b"!")

    def stay_with(self, lane: Lane | None) -> None:
        """The receiving thread waits for this one itself, and the settle thread is not woken by it; None: no longer."""
        if lane is not None and lane.number not in self._unwatched:
            self._selector.unregister(lane)
            self._unwatched.add(lane.number)
        self._staying = lane

    def watch_all(self) -> None:
        """All but the one that the receiving thread stays with. Those that it has used were unwatched until now."""
        for number in [n for n in self._unwatched if self._staying is None or n != self._staying.number]:
            self._watch(self._lanes[number], self._lanes[number].unsent)

    def _watch(self, lane: Lane, writing: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        if lane.number in self._unwatched:
            self._unwatched.discard(lane.number)
            self._selector.register(lane, events, lane.number)
        elif self._events.get(lane.number) != events:
            self._selector.modify(lane, events, lane.number)
        self._events[lane.number] = events

    # Ends ----------------------------------------------------------------------------------------------------

    def drop(self, lane: Lane) -> None:
        """It is gone."""
        del self._lanes[lane.number]
        self._events.pop(lane.number, None)
        if lane.number in self._unwatched:
            self._unwatched.discard(lane.number)
        else:
            self._selector.unregister(lane)

    def retire(self, numbers: Iterable[int]) -> None:
        """Let these go; they are idle."""
        for number in numbers:
            lane = self._lanes[number]
            self.drop(lane)
            lane.close()

    def kill(self) -> None:
        """End all at once."""
        for lane in self._lanes.values():
            lane.kill()

    def close_lanes(self) -> None:
        """Let all go: from here on nothing is told any more."""
        for lane in self._lanes.values():
            lane.close()

    def close(self) -> None:
        """Free what woke the settle thread."""
        self._selector.close()
        self._bell.close()
        self._poke.close()
