"""A stream of submits: one run, calls added one by one, sent in frames."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from qnb import message
from qnb.codec.failures import unpack_failure
from qnb.codec.outcomes import read_times, spans_of
from qnb.codec.payloads import decode_values
from qnb.codec.pickling import loads
from qnb.codec.references import Call
from qnb.message import CANCELLED, DONE, Frame, Function, Outcomes, Progress
from qnb.session.calls import pack_frames
from qnb.session.future import Future
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    from qnb.session.session import Session

FRAME_BYTES = 65536
REPLAY_BYTES = 65536  # of a call's arguments, kept with its future for `replay`


class Stream:
    """Submits of one version of a function with one set of options."""

    def __init__(self, session: Session, run: str, function: Function, options: TaskOptions) -> None:
        self.session = session
        self.run = run
        self.function = function
        self.options = options
        self.created_at = time.time()
        self.origin: Any = None  # the function itself, for its source
        self.pending: dict[int, Future] = {}
        self._lock = threading.Lock()
        self._first = self._next = 0
        self._buffer: list[bytes | Call] = []
        self._outgoing: list[Frame] = []
        self._bytes = 0

    def add(self, call: bytes | Call) -> tuple[Future, int]:
        """A packed call: its future, and how much waits to be sent (FRAME_BYTES or more when it is time)."""
        with self._lock:
            index = self._next
            self._next = index + 1
            size = len(call) if type(call) is bytes else _size(call)
            future = self.pending[index] = Future(self, index, call if size <= REPLAY_BYTES else None)
            buffer = self._buffer
            if not buffer:
                self.session.outbox.waiting.append(self)
            buffer.append(call)
            self._bytes += size
            # 256 calls count as full, however small.
            return future, max(self._bytes, len(buffer) << 8)

    @property
    def count(self) -> int:
        """Calls added so far."""
        return self._next

    def pack(self, limit: int) -> list[Frame]:
        """What is to be sent as frames of at most `limit` calls; the same again until `sent` says that they were."""
        with self._lock:
            calls, first = self._buffer, self._first
            frames = self._outgoing + self._frames(calls, first, limit)
            # Nothing is called between these lines, so that Ctrl-C finds either all of them done or none.
            self._outgoing = frames
            self._buffer = []
            self._bytes = 0
            self._first = self._next
        return frames

    def sent(self) -> None:
        """What was packed has been sent."""
        self._outgoing = []

    def unsent(self, frames: list[Frame]) -> None:
        """These have not been sent after all, or nobody knows."""
        with self._lock:
            if self._outgoing is not frames:
                self._outgoing = frames + self._outgoing

    def _frames(self, calls: list[bytes | Call], first: int, limit: int) -> list[Frame]:
        now, options, peer = time.time(), self.options.on_wire(), self.session.peer
        frames, start, sizes = [], 0, [*map(_size, calls)]
        while start < len(calls):
            stop, size = start + 1, sizes[start]
            while stop < len(calls) and stop - start < limit and size + sizes[stop] <= FRAME_BYTES:
                size += sizes[stop]
                stop += 1
            for count, args in pack_frames(calls[start:stop]):
                frames.append(Frame(self.run, first + start, count, self.function, args, options, peer, now))
                start += count
        return frames

    def absorb(self, outcomes: Outcomes) -> int:
        """Fill the futures of these calls; how many were new."""
        values, broken = decode_values(outcomes.values, loads, self.session.fetch)
        for position, text in outcomes.outputs.items():
            if (speaker := self.pending.get(outcomes.first + position)) is not None:
                speaker._said(text, None, speaker.progress)
        for position, displays in outcomes.displays.items():
            if (speaker := self.pending.get(outcomes.first + position)) is not None:
                speaker._displays = displays
        get, pop, new = self.pending.get, self.pending.pop, 0
        if not outcomes.states and not broken:
            for index, value in enumerate(values, outcomes.first):
                future = get(index)
                if future is not None:
                    future._end_done(value)
                    # Only now: an interrupt before this line leaves the future to be found again.
                    pop(index, None)
                    new += 1
        else:
            states = outcomes.states or bytes([DONE]) * outcomes.count
            for position, state in enumerate(states):
                index = outcomes.first + position
                future = get(index)
                if future is not None:
                    end(future, state, position, values, broken, outcomes)
                    pop(index, None)
                    new += 1
        self._learn(outcomes)
        return new

    def _learn(self, outcomes: Outcomes) -> None:
        if outcomes.times:
            times = read_times(outcomes.times)
            self.session.learn(self.function.hash, times[-1] - times[0], outcomes.count)

    def progress(self, progress: Progress) -> None:
        """Calls run, or will be tried again."""
        for index in progress.indices:
            future = self.pending.get(index)
            if future is not None and not future.done():
                if progress.output or progress.steps or progress.displays:
                    future._hear(progress)
                future._start(progress.state)

    @property
    def over(self) -> bool:
        """Whether no call can come any more: a stream stays open."""
        return False

    def state(self, index: int) -> int | None:
        """The state of a call; None when it is over or there is none."""
        future = self.pending.get(index)
        return None if future is None else future._code

    def missing(self) -> list[tuple[int, int]]:
        """Spans of sent calls without an outcome."""
        with self._lock:
            sent = self._first
        return spans_of([index for index in list(self.pending) if index < sent])

    def cancelled(self, first: int, count: int) -> int:
        """These calls will never run; how many were new."""
        new = 0
        for index in range(first, first + count):
            future = self.pending.get(index)
            if future is not None:
                future._end_cancelled()
                self.pending.pop(index, None)
                new += 1
        return new

    def fail(self, first: int, count: int, error: BaseException) -> int:
        """These calls could not be sent; how many were new."""
        new = 0
        for index in range(first, first + count):
            future = self.pending.get(index)
            if future is not None:
                future._unsent = True
                future._end_failed(message.FAILED, error, "")
                self.pending.pop(index, None)
                new += 1
        return new


def _size(call: bytes | Call) -> int:
    return len(call) if isinstance(call, bytes) else len(call[0])


def end(
    future: Future, state: int, position: int, values: list[Any], broken: dict[int, Exception], outcomes: Outcomes
) -> None:
    """Give one future its outcome."""
    failure = outcomes.failures.get(position)
    if state == CANCELLED:
        future._end_cancelled(unpack_failure(failure) if failure else None)
    elif state != DONE and failure is not None:
        future._end_failed(state, unpack_failure(failure), failure.traceback)
    elif position in broken:
        future._end_failed(message.FAILED, broken[position], "")
    else:
        future._end_done(values[position])
