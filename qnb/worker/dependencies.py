"""How a worker hears of calls that others here wait for: it follows their runs, and looks into the backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qnb.codec.failures import own_failure
from qnb.codec.outcomes import spans_of
from qnb.codec.references import REFERRING, blobs_of, decode_referring, split_values
from qnb.codec.signing import NOTE, OUTCOMES, decode, encode
from qnb.errors import MessageError
from qnb.message import DONE, FAILED, WORKER_PREFIX, Blob, Command, Frame, Note, Outcomes, Stored
from qnb.worker.files import names_of
from qnb.worker.graph import Known

if TYPE_CHECKING:
    from qnb.worker.loop import Worker

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 10.0
LOOK_SECONDS, LOOK_MOST_SECONDS = 0.05, 2.0
_SPANS = 1000  # asked for at once


class Dependencies:
    """Of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._followed: dict[str, float] = {}
        self._reply_to: dict[str, str] = {}  # by run, a session that may know of it
        self._look_at = self._pause = 0.0

    def taken(self, frame: Frame) -> None:
        """A frame has been taken, some of whose calls may wait for others: hear of them, then look."""
        graph = self._worker.logic.graph
        with self._worker.lock:
            runs = graph.runs
        for run in runs if frame.reply_to else ():
            self._reply_to.setdefault(run, frame.reply_to)
        if runs:
            self._follow(runs)
            self._look(runs)
            self._pause, self._look_at = LOOK_SECONDS, time.monotonic() + LOOK_SECONDS

    def tend(self) -> float | None:
        """Look again, from time to time; in how many seconds next, None where nothing waits."""
        with self._worker.lock:
            runs = self._worker.logic.graph.runs
        if not runs:
            self._followed.clear()
            self._reply_to.clear()
            return None
        now = time.monotonic()
        if now >= self._look_at:
            self._pause = min(LOOK_MOST_SECONDS, max(LOOK_SECONDS, 2 * self._pause))
            self._look_at = now + self._pause
            self._follow(runs)
            self._look(runs)
        return max(0.01, self._look_at - now)

    def _follow(self, runs: Sequence[str]) -> None:
        """Have the other workers tell this one, too, what becomes of these runs."""
        now = time.monotonic()
        due = [run for run in runs if now - self._followed.get(run, -FOLLOW_SECONDS) > FOLLOW_SECONDS / 3]
        if not due:
            return
        worker = self._worker
        others = [peer.peer for peer in worker.bus.peers(WORKER_PREFIX) if peer.peer != worker.peer]
        for run in due:
            arguments: dict[str, object] = {"run": run, "peer": worker.peer, "seconds": FOLLOW_SECONDS}
            self._tell("follow", arguments, others)
            self._followed[run] = now

    def _tell(self, name: str, arguments: dict[str, object], peers: Sequence[str]) -> None:
        signer = self._worker.signer.about(str(arguments["run"]))
        body = signer.seal(NOTE, encode(Command(name, arguments, "", "")))
        self._worker.bus.post_many([Note(peer, "command", body) for peer in peers])

    def _look(self, runs: Sequence[str]) -> None:
        for run in runs:
            with self._worker.lock:
                spans = spans_of(self._worker.logic.graph.missing(run))
            for start in range(0, len(spans), _SPANS):
                part = spans[start : start + _SPANS]
                self._learn(self._worker.backend.fetch_many(run, part))
                if not self._worker.backend.blobs:
                    self._ask(run, part)

    def _ask(self, run: str, spans: Sequence[tuple[int, int]]) -> None:
        """Results that travel: other workers may remember them, and the session that asked for them."""
        worker = self._worker
        peers = [peer.peer for peer in worker.bus.peers(WORKER_PREFIX) if peer.peer != worker.peer]
        if run in self._reply_to:
            peers.append(self._reply_to[run])
        self._tell("outcomes", {"peer": worker.peer, "run": run, "spans": list(spans)}, peers)

    def heard(self, note: Note) -> None:
        """Another worker has told outcomes, or that there are some."""
        signer = self._worker.signer
        if note.kind == "outcomes":
            self._take_in([signer.unpack(OUTCOMES, note.body, Outcomes)])
        else:
            run, first, count = decode(signer.unseal(NOTE, note.body), tuple[str, int, int])
            self._learn(self._worker.backend.fetch_many(run, [(first, count)]))

    def stored(self, records: Sequence[Stored], refused: Sequence[Stored]) -> None:
        """This worker has stored outcomes: all but those refused, of which there are others."""
        graph = self._worker.logic.graph
        if not graph.blocked:
            return
        self._learn([record for record in records if graph.wants(record.run) and record not in refused])
        for record in refused:
            if graph.wants(record.run):
                self._learn(self._worker.backend.fetch_many(record.run, [(record.first, record.count)]))

    def _learn(self, records: Sequence[Stored]) -> None:
        found = []
        for record in records:
            try:
                found.append(self._worker.signer.unpack(OUTCOMES, record.data, Outcomes))
            except MessageError as error:  # of someone with another key, or altered: it is not opened
                log.warning("a stored outcome of run %s is refused: %s", record.run, error)
        self._take_in(found)

    def _take_in(self, records: Sequence[Outcomes]) -> None:
        worker = self._worker
        for outcomes in records:
            with worker.lock:
                missing = worker.logic.graph.missing(outcomes.run)
            stop = outcomes.first + outcomes.count
            wanted = [index for index in missing if outcomes.first <= index < stop]
            if wanted:
                worker.learn(outcomes.run, self._known(outcomes, wanted))

    def _known(self, outcomes: Outcomes, wanted: Sequence[int]) -> Mapping[int, Known]:
        positions = [index - outcomes.first for index in wanted]
        done = [at for at in positions if not outcomes.states or outcomes.states[at] == DONE]
        values = split_values(outcomes.values, done)
        known: dict[int, Known] = {}
        for at in positions:
            if at not in values:
                known[outcomes.first + at] = Known(outcomes.states[at], b"", outcomes.failures.get(at))
                continue
            try:
                self._worker.files.fetch(blobs_of(values[at]))
                known[outcomes.first + at] = Known(DONE, values[at])
            except MessageError as error:
                known[outcomes.first + at] = Known(FAILED, b"", own_failure(error))
        return known


def blobs_in(frame: Frame) -> list[Blob]:
    """What calls of a frame have put aside."""
    if frame.args[:1] != REFERRING:
        return []
    return [each for _, references in decode_referring(frame.args) for each in references if isinstance(each, Blob)]


def needed_files(worker: Worker) -> set[str]:
    """Names of the files that calls of this worker need, or may need."""
    with worker.lock:
        every = list(worker.logic.held.values())
        values = [value for held in every for value in held.values(held.frame.first, held.frame.count).values()]
        values += worker.logic.graph.values()
    blobs = [blob for held in every for blob in blobs_in(held.frame)]
    blobs += [blob for value in values for blob in blobs_of(value)]
    return {key for blob in blobs for key, _ in names_of(blob)}
