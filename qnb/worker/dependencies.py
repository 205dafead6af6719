"""How a worker hears of calls that others here wait for: it follows their runs, and looks into the backend."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from qnb.codec.failures import own_failure
from qnb.codec.outcomes import spans_of
from qnb.codec.parts import names_of
from qnb.codec.references import REFERRING, Reference, blobs_of, decode_referring, split_values
from qnb.codec.signing import NOTE, OUTCOMES, decode, encode
from qnb.errors import MessageError, QnbError, StorageFull
from qnb.message import DONE, FAILED, WORKER_PREFIX, Command, Frame, Note, Outcomes, Stored, ValueOf
from qnb.worker.files import fault_of
from qnb.worker.graph import Known
from qnb.worker.opening import blobs_among
from qnb.worker.protocol import remember

if TYPE_CHECKING:
    from qnb.worker.loop import Worker

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 10.0
LOOK_SECONDS, LOOK_MOST_SECONDS = 0.05, 2.0
GONE_SECONDS = 30.0  # of waiting for a run that is not known, whose record is written a moment after it began
GONE_LOOKS = 2  # in that time, all of which have to find no record
FULL_LOOKS = 10  # for a value that there is no room for here, before its call fails: some 10 s
_SPANS = 1000  # asked for at once
_REPLY_TO = 10_000


class Dependencies:
    """Of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._followed: dict[str, float] = {}
        self._reply_to: dict[str, str] = {}  # by run, a session that may know of it
        self._since: dict[str, float] = {}  # when something of a run was first waited for, or its record looked for
        self._missed: dict[str, int] = {}  # how often in a row it was not there
        self._full: dict[tuple[str, int], int] = {}  # how often a value could not be written to a file
        self._look_at = self._pause = 0.0
        self._notes: deque[Note] = deque()
        self._work = threading.Event()

    def taken(self, frame: Frame, references: Sequence[Reference]) -> None:
        """A frame has been taken, some of whose calls may wait for others: have it looked for what they wait for."""
        runs = {each.run for each in references if isinstance(each, ValueOf)}
        for run in runs if frame.reply_to else ():
            remember(self._reply_to, run, frame.reply_to, _REPLY_TO)
        if runs:
            self._work.set()

    def heard(self, note: Note) -> None:
        """Another worker has told outcomes, or that there are some."""
        self._notes.append(note)
        self._work.set()

    def wake(self) -> None:
        """See at once that the worker has stopped."""
        self._work.set()

    def run(self) -> None:
        """A thread: what is fetched here may be large, and nothing else waits for it."""
        while not self._worker.stopped.is_set():
            pause = self._tend()
            self._work.wait(min(1.0, pause) if pause is not None else 1.0)
            self._work.clear()
            while self._notes:
                self._take_note(self._notes.popleft())

    def _tend(self) -> float | None:
        """Look for what is new, and from time to time for all; in how many seconds next, None where nothing waits."""
        worker, graph = self._worker, self._worker.logic.graph
        worker.expire()
        with worker.lock:
            runs, fresh = graph.runs, graph.take_fresh()
        if not runs:
            for each in (self._followed, self._since, self._missed, self._full):
                each.clear()
            self._pause = 0.0
            return None
        for kept in (self._since, self._missed):
            for run in kept.keys() - runs:
                del kept[run]
        now = time.monotonic()
        if now >= self._look_at:
            self._pause = min(LOOK_MOST_SECONDS, max(LOOK_SECONDS, 2 * self._pause))
            self._look_at = now + self._pause
            with worker.lock:
                fresh = {run: set(graph.missing(run)) for run in runs}
        if fresh:
            self._try(fresh)
        self._give_up([run for run in runs if now - self._since.setdefault(run, now) > GONE_SECONDS / GONE_LOOKS])
        return max(0.01, self._look_at - now)

    def _try(self, missing: Mapping[str, Collection[int]]) -> None:
        """One of the two may be out of reach, and the other do."""
        for step in (self._follow, self._look):
            try:
                step(missing)
            except QnbError as error:  # the frames are held: the next look may find what they wait for
                log.warning("cannot look for what calls wait for, trying on: %s", error)

    def _give_up(self, runs: Sequence[str]) -> None:
        """Of a run that nobody knows any more no value will come: it was forgotten, or has expired."""
        worker = self._worker
        for run in runs if worker.backend.durable else ():
            self._since[run] = time.monotonic()
            try:
                known = worker.backend.load_run(run) is not None
            except QnbError as error:
                log.warning("cannot look for run %s: %s", run, error)
                continue
            self._missed[run] = 0 if known else self._missed.get(run, 0) + 1
            if self._missed[run] < GONE_LOOKS:
                continue
            with worker.lock:
                missing = worker.logic.graph.missing(run)
            self._fail(run, missing, MessageError(f"its value is no longer in {worker.backend.url}: submit it again"))

    def _fail(self, run: str, indices: Iterable[int], error: QnbError) -> None:
        """Whoever waits for these calls is told so, and nobody else."""
        self._worker.learn(run, dict.fromkeys(indices, Known(FAILED, b"", own_failure(error), own=True)))

    def _take_note(self, note: Note) -> None:
        signer = self._worker.signer
        try:
            if note.kind == "outcomes":
                self._take_in([signer.unpack(OUTCOMES, note.body, Outcomes)])
            elif note.kind == "stored":
                run, first, count = decode(signer.unseal(NOTE, note.body), tuple[str, int, int])
                self._learn(self._worker.backend.fetch_many(run, [(first, count)]))
        except QnbError as error:
            log.warning("a note is not taken in: %s", error)

    def _follow(self, runs: Iterable[str]) -> None:
        """Have the other workers tell this one, too, what becomes of these runs."""
        now = time.monotonic()
        due = [run for run in runs if now - self._followed.get(run, -FOLLOW_SECONDS) > FOLLOW_SECONDS / 3]
        if not due:
            return
        others = self._others()
        for run in due:
            self._tell("follow", {"run": run, "peer": self._worker.peer, "seconds": FOLLOW_SECONDS}, others)
            self._followed[run] = now

    def _others(self) -> list[str]:
        return [peer.peer for peer in self._worker.bus.peers(WORKER_PREFIX) if peer.peer != self._worker.peer]

    def _tell(self, name: str, arguments: dict[str, object], peers: Sequence[str]) -> None:
        signer = self._worker.signer.about(str(arguments["run"]))
        body = signer.seal(NOTE, encode(Command(name, arguments, "", "")))
        self._worker.bus.post_many([Note(peer, "command", body) for peer in peers])

    def _look(self, missing: Mapping[str, Collection[int]]) -> None:
        for run, indices in missing.items():
            spans = spans_of(indices)
            for start in range(0, len(spans), _SPANS):
                part = spans[start : start + _SPANS]
                self._learn(self._worker.backend.fetch_many(run, part))
                if not self._worker.backend.blobs:
                    self._ask(run, part)

    def _ask(self, run: str, spans: Sequence[tuple[int, int]]) -> None:
        """Results that travel: other workers may remember them, and the session that asked for them."""
        peers = self._others()
        if run in self._reply_to:
            peers.append(self._reply_to[run])
        self._tell("outcomes", {"peer": self._worker.peer, "run": run, "spans": list(spans)}, peers)

    def stored(self, records: Sequence[Stored], refused: Sequence[Stored]) -> None:
        """This worker has stored outcomes: all but those refused, of which there are others."""
        graph = self._worker.logic.graph
        if not graph.blocked:
            return
        try:
            self._learn([record for record in records if graph.wants(record.run) and record not in refused])
            for record in refused:
                if graph.wants(record.run):
                    self._learn(self._worker.backend.fetch_many(record.run, [(record.first, record.count)]))
        except QnbError as error:  # they are stored: the next look finds them
            log.warning("cannot look for what calls wait for, trying on: %s", error)

    def _learn(self, records: Sequence[Stored]) -> None:
        found = []
        for record in records:
            try:
                found.append(self._worker.signer.unpack(OUTCOMES, record.data, Outcomes))
            except MessageError as error:  # of someone with another key, or altered: it is not opened
                log.warning("a stored outcome of run %s is refused: %s", record.run, error)
                self._refuse(record, error)
        self._take_in(found)

    def _refuse(self, record: Stored | Outcomes, error: MessageError) -> None:
        """The first outcome stored stays, and this one is not opened: who waits for it fails with the reason."""
        with self._worker.lock:
            wanted = self._worker.logic.graph.wanted(record.run, record.first, record.count)
        self._fail(record.run, wanted, error)

    def _take_in(self, records: Sequence[Outcomes]) -> None:
        worker = self._worker
        for outcomes in records:
            with worker.lock:
                wanted = worker.logic.graph.wanted(outcomes.run, outcomes.first, outcomes.count)
            if wanted:
                try:
                    worker.learn(outcomes.run, self._known(outcomes, wanted))
                except MessageError as error:
                    self._refuse(outcomes, error)

    def _known(self, outcomes: Outcomes, wanted: Sequence[int]) -> Mapping[int, Known]:
        positions = [index - outcomes.first for index in wanted]
        done = [at for at in positions if not outcomes.states or outcomes.states[at] == DONE]
        values = split_values(outcomes.values, done)
        blobs = {at: blobs_of(value) for at, value in values.items()}
        faults = self._worker.files.fetch(chain.from_iterable(blobs.values()))
        known: dict[int, Known] = {}
        for at in positions:
            if at not in values:
                known[outcomes.first + at] = Known(outcomes.states[at], b"", outcomes.failures.get(at))
            elif error := fault_of(blobs[at], faults):
                if not isinstance(error, StorageFull) or self._full_again(outcomes.run, outcomes.first + at):
                    known[outcomes.first + at] = Known(FAILED, b"", own_failure(error), own=True)
            else:
                known[outcomes.first + at] = Known(DONE, values[at])
        return known

    def _full_again(self, run: str, index: int) -> bool:
        """Whether there was no room for this value too often; else it is looked for again after a pause."""
        times = self._full.pop((run, index), 0) + 1
        if times < FULL_LOOKS:
            self._full[run, index] = times
        return times >= FULL_LOOKS


def needed_files(worker: Worker) -> set[str]:
    """Names of the files that calls of this worker need, or may need."""
    with worker.lock:
        every = list(worker.logic.held.values())
        values = [value for held in every for value in held.values(held.frame.first, held.frame.count).values()]
        values += worker.logic.graph.values()
    frames = [held.frame for held in every if held.frame.args[:1] == REFERRING]
    calls = [references for frame in frames for _, references in decode_referring(frame.args)]
    blobs = [blob for references in calls for blob in blobs_among(references)]
    blobs += [blob for value in values for blob in blobs_of(value)]
    return {key for blob in blobs for key, _ in names_of(blob)}
