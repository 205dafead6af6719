"""Outcomes → futures and batches.

Whoever waits reads the inbox itself, which saves two thread switches a call; a background thread reads only while
calls are pending and nobody waits. A sweep of the backend covers what a lost note would have told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from qnb.backends.base import Backend
from qnb.brokers.base import Bus, Inbox
from qnb.codec.signing import NOTE, OUTCOMES, Signer, decode
from qnb.errors import MessageError, QnbError
from qnb.message import Command, Event, Function, Note, Outcomes, Progress, Reply, Stored
from qnb.session.calls import Differences

log = logging.getLogger(__name__)

Spans = list[tuple[int, int]]  # first, count

READ_SECONDS = 0.25
QUIET_SECONDS = 0.01
AWAKE_SECONDS = 0.05
SWEEP_SECONDS = 2.0
SWEEP_MAX_SECONDS = 30.0
OVERTAKEN_SECONDS = 10.0  # while others are heard of: calls that are missing at two looks in a row are asked for
_LOOKED_AT = 1000  # runs, and spans of each


class Sink(Protocol):
    """A run with calls that are not over."""

    run: str
    function: Function

    @property
    def over(self) -> bool: ...

    def absorb(self, outcomes: Outcomes) -> int: ...
    def progress(self, progress: Progress) -> None: ...
    def missing(self) -> list[tuple[int, int]]: ...
    def cancelled(self, first: int, count: int) -> int: ...
    def fail(self, first: int, count: int, error: BaseException) -> int: ...


class Collector:
    """Reads one session's inbox."""

    def __init__(
        self, inbox: Inbox, bus: Bus, backend: Backend, signer: Signer, on_silence: Callable[[], None]
    ) -> None:
        self.inbox = inbox
        self._bus = bus
        self._on_silence = on_silence
        self.backend = backend
        self.signer = signer
        self.sinks: dict[str, Sink] = {}
        self.replies: dict[str, list[Reply]] = {}
        self.on_event: list[Callable[[Event], None]] = []
        self.listening = 0  # how many want events or replies: reason to read without pending calls
        self.pending = 0
        self.differences = Differences()
        self.followed: set[str] = set()  # runs of others
        self._reader = threading.RLock()  # which knows whose it is
        self._count = threading.Lock()
        self._work = threading.Event()
        self._dozing = False
        self._reading = 0  # the thread that holds `_reader`
        self._sweep_after = SWEEP_SECONDS
        self._backlog: deque[Note] = deque()
        self._last_note = self._last_sweep = self._last_direct = self._last_look = time.monotonic()
        self._gaps: dict[str, set[int]] = {}  # where missing spans of each run began at the last look
        self.ask_again: Callable[[Mapping[str, Spans]], None] | None = None  # where results are kept by nobody else
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qnb-collector", daemon=True)
        self._thread.start()

    def expect(self, sink: Sink, calls: int, followed: bool = False) -> None:
        """So many calls more are pending; `followed`: of somebody else's run, which nobody here has to wait for."""
        with self._count:
            if not self.pending:
                self._last_note = self._last_sweep = time.monotonic()
                self._sweep_after = SWEEP_SECONDS
            self.sinks[sink.run] = sink
            self.pending += calls
            if followed:
                self.followed.add(sink.run)
        if self._dozing:
            self._work.set()

    def listen(self, change: int) -> None:
        """So many more, or fewer, want events: they are read even while no call is pending."""
        with self._count:
            self.listening += change
        self._work.set()

    @property
    def own_pending(self) -> int:
        """Calls of this session's own runs that are not over."""
        others = [sink for run in list(self.followed) if (sink := self.sinks.get(run)) is not None]
        return self.pending - sum(count for sink in others for _, count in sink.missing())

    def forget(self, sink: Sink) -> None:
        """Expect nothing more of a run."""
        with self._count:
            if self.sinks.pop(sink.run, None) is not None:
                self.pending -= sum(count for _, count in sink.missing())
            self.followed.discard(sink.run)

    def settled(self, sink: Sink, calls: int) -> None:
        """So many calls of a run are over."""
        with self._count:
            self.pending -= calls
        if sink.over:
            self.sinks.pop(sink.run, None)
            self.followed.discard(sink.run)

    def wait(
        self,
        done: Callable[[], bool],
        condition: threading.Condition,
        timeout: float | None,
        send: Callable[[float], Sequence[Note]] | None = None,
    ) -> bool:
        """Wait until `done()`; False when it is not after `timeout` seconds. `condition` is notified of changes.

        `send` is called first: it sends what waits to be sent, and gives notes when it has read the inbox for at
        most so many seconds, which it may only be asked to do when nobody else reads (else with 0 seconds).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        me, first = threading.get_ident(), True
        inside = self._reading == me  # in a callback of this thread's own reading
        try:
            while not done():
                left = READ_SECONDS if deadline is None else min(READ_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    return False
                if inside or self._reader.acquire(blocking=False):
                    self._reading = me
                    if send is not None and first:
                        first = False
                        self._backlog.extend(send(left))
                        self._take_all()
                    elif not done():
                        self._pump(left)
                    if not inside:
                        self._let_go(me)
                else:
                    if send is not None and first:
                        first = False
                        send(0.0)
                    with condition:
                        if not done():
                            condition.wait(min(left, 0.05))
            return True
        finally:
            if not inside:
                self._let_go(me)
            self._last_direct = time.monotonic()

    def _let_go(self, me: int) -> None:
        """Read no more, whether or not it is known that one did: a Ctrl-C may come as soon as the lock is taken."""
        if self._reader._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
            if self._reading == me:
                self._reading = 0
            self._reader.release()

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._work.set()
        self.inbox.wake()
        self._thread.join(5.0)

    # -----------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        used = time.monotonic()
        while not self._closed.is_set():
            now = time.monotonic()
            if self.pending or self.listening:
                used = now
            # Awake for a while after the last call, so that a submit need not wake it: that costs more than looking.
            self._dozing = now - used > AWAKE_SECONDS
            if self._dozing:
                if not self.pending and not self.listening:
                    self._work.wait()
                self._work.clear()
            elif self._reading or now - self._last_direct < QUIET_SECONDS or now != used:
                # One who waits reads for himself; this thread takes over when he has what he waited for.
                self._closed.wait(QUIET_SECONDS)
            else:
                self._read()

    def _read(self) -> None:
        with self._reader:
            self._reading = threading.get_ident()
            try:
                self._pump(READ_SECONDS)
            except QnbError as error:
                log.warning("cannot read outcomes, trying on: %s", error)
                time.sleep(0.5)
            finally:
                self._reading = 0

    def _pump(self, timeout: float) -> None:
        """Read once and take in what came. Only the holder of `_reader` does."""
        backlog = self._backlog
        if not backlog:
            backlog.extend(self.inbox.receive_many(1000, timeout))
        self._take_all()
        now = time.monotonic()
        if self.pending and now - max(self._last_note, self._last_sweep) > self._sweep_after:
            self._last_sweep = now
            self._sweep_after = min(SWEEP_MAX_SECONDS, 2 * self._sweep_after)
            self.sweep()
            if self.pending:
                self._on_silence()
        elif self.pending and now - self._last_look > OVERTAKEN_SECONDS:
            self._last_look = now
            self._look_for_overtaken()

    def _take_all(self) -> None:
        backlog = self._backlog
        if backlog:
            self._last_note = time.monotonic()
            self._sweep_after = SWEEP_SECONDS
        while backlog:
            # Popped only when done with: a Ctrl-C in between leads to a second look, not to a loss.
            note = backlog[0]
            self._take(note)
            if backlog and backlog[0] is note:  # a callback that waited may have taken it in already
                backlog.popleft()

    def _take(self, note: Note) -> None:
        try:
            if note.kind == "outcomes":
                outcomes = self.signer.unpack(OUTCOMES, note.body, Outcomes)
                if not self.backend.blobs:  # rpc: nobody else keeps them
                    self.backend.store_many([Stored(outcomes.run, outcomes.first, outcomes.count, note.body)])
                self._absorb(outcomes)
                return
            body = self.signer.unseal(NOTE, note.body)
            if note.kind == "progress":
                progress = decode(body, Progress)
                sink = self.sinks.get(progress.run)
                if sink is not None:
                    sink.progress(progress)
            elif note.kind == "reply":
                reply = decode(body, Reply)
                if reply.id in self.replies:
                    self.replies[reply.id].append(reply)
            elif note.kind == "stored":
                run, first, count = decode(body, tuple[str, int, int])
                self.fetch(run, [(first, count)])
            elif note.kind == "command":
                self._serve(decode(body, Command))
            elif note.kind == "event":
                event = decode(body, Event)
                for tell in list(self.on_event):
                    tell(event)
        except MessageError as error:
            log.warning("a note is refused: %s", error)
        except QnbError:
            raise
        except Exception:  # one note that cannot be taken in must not stop all others
            log.exception("a note of kind %s", note.kind)

    def _serve(self, command: Command) -> None:
        """A worker asks for results that travel and are kept nowhere else: here are the last that came."""
        if command.name == "outcomes" and not self.backend.blobs:
            asked: Any = command.arguments
            peer, run = asked["peer"], asked["run"]
            found = self.backend.fetch_many(run, [(first, count) for first, count in asked["spans"]])
            self._bus.post_many([Note(peer, "outcomes", record.data) for record in found])

    def _absorb(self, outcomes: Outcomes) -> None:
        sink = self.sinks.get(outcomes.run)
        if sink is not None:
            if outcomes.differs:  # told before whoever waits for the result goes on
                self.differences.look(sink.function, outcomes)
            self.settled(sink, sink.absorb(outcomes))

    def fetch(self, run: str, spans: Iterable[tuple[int, int]] | None = None) -> None:
        """Take in what the backend has of a run, or of some of its calls."""
        for record in self.backend.fetch_many(run, None if spans is None else list(spans)):
            try:
                outcomes = self.signer.unpack(OUTCOMES, record.data, Outcomes)
            except MessageError as error:
                self._refuse(record, error)
            else:
                self._absorb(outcomes)

    def _refuse(self, record: Stored, error: MessageError) -> None:
        """The first outcome stored for a call stays, and this one is not opened: its calls fail with the reason."""
        log.warning("a stored outcome of run %s is refused: %s", record.run, error)
        sink = self.sinks.get(record.run)
        if sink is None:
            return
        for first, count in sink.missing():
            low, high = max(first, record.first), min(first + count, record.first + record.count)
            if low < high:
                self.settled(sink, sink.fail(low, high - low, error))

    def _look_for_overtaken(self) -> None:
        """A note may be lost while others come, so that it is never silent enough for a sweep. What only waits for its
        turn is not asked for: where it begins moves on from look to look."""
        before, self._gaps = self._gaps, {}
        stuck: dict[str, Spans] = {}
        for sink in list(self.sinks.values())[:_LOOKED_AT]:
            spans = sink.missing()[:_LOOKED_AT]
            self._gaps[sink.run] = {first for first, _ in spans}
            if old := [span for span in spans if span[0] in before.get(sink.run, ())]:
                stuck[sink.run] = old
        if stuck and not self.backend.blobs and self.ask_again is not None:
            self.ask_again(stuck)
        elif stuck and self.backend.blobs:
            for run, spans in stuck.items():
                self.fetch(run, spans)

    def sweep(self) -> None:
        """Ask the backend for every call that is pending."""
        for sink in list(self.sinks.values()):
            if spans := sink.missing():
                self.fetch(sink.run, spans)
