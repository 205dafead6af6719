"""Settling a turn: publish what is to be tried again, store outcomes, tell sessions, ack."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qnb.brokers.base import Turn
from qnb.codec.claims import lighten
from qnb.codec.failures import own_failure
from qnb.codec.outcomes import gaps, slice_outcomes
from qnb.codec.parts import put_sealed
from qnb.codec.references import REFERRING, decode_entries, encode_entries
from qnb.codec.signing import FRAME, NOTE, OUTCOMES, encode
from qnb.errors import PayloadTooLarge, PublishFailed, QnbError
from qnb.message import DONE, FAILED, Display, Envelope, Frame, Note, Outcomes, Stored
from qnb.worker import actions as act
from qnb.worker.files import fault_of

if TYPE_CHECKING:
    from qnb.worker.loop import Worker

log = logging.getLogger(__name__)

_NO_ROOM = "… the output is left out: with it the outcome is larger than a message may be …\n"
_NO_ROOM_TO_SHOW = Display({"text/plain": "… displays are left out: the outcome is larger than a message may be …"})
OUTCOME_BYTES = 500 * 1024 * 1024  # a value in Redis may have 512 MiB


class _StoppedCold(Exception):
    """Nothing is tried again any more."""


class Settling:
    """Turns the logic's actions into one round trip where broker and backend are partners, else into four steps."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._signer = worker.signer
        self._broker = worker.broker
        self._backend = worker.backend
        self._bus = worker.bus
        self._consumer = worker.consumer
        self._at_once = worker.broker.partner(worker.backend)

    def turn(self, taken: list[act.Action]) -> None:
        """All of it, in the end; nothing when the worker is stopped cold before, so that others run it again."""
        with suppress(_StoppedCold):
            self._turn(taken)

    def _turn(self, taken: list[act.Action]) -> None:
        turn = Turn()
        faults: dict[str, QnbError] = {}  # by name, why something put aside will never be stored
        rest: list[act.Action] = []
        for action in taken:
            match action:
                case act.Keep(run, first, count, states, data, reply_to, doubtful, aside):
                    if aside:
                        take_in = partial(self._worker.files.take_in, aside, self._signer.about(run), faults)
                        self._persist(take_in)
                    if faults:
                        states, data = self._failing(states, data, faults)
                    record = Stored(run, first, count, data)
                    if doubtful:
                        self._persist(partial(self._add_new, turn, record, reply_to))
                    else:
                        self._add_outcome(turn, record, reply_to)
                    self._worker.commands.ended(run, first, count, states)
                case act.Conclude(outcomes, reply_to):
                    data = self._signer.pack(OUTCOMES, outcomes)
                    self._add_outcome(turn, Stored(outcomes.run, outcomes.first, outcomes.count, data), reply_to)
                    self._worker.commands.ended(outcomes.run, outcomes.first, outcomes.count, outcomes.states)
                case act.Tell(progress, reply_to):
                    if hearers := self._hearers(progress.run, reply_to):
                        body = self._signer.pack(NOTE, progress)
                        turn.post += [Note(peer, "progress", body) for peer in hearers]
                    self._worker.commands.progressed(progress)
                case act.Publish(frame, queue, delay):
                    self._persist(partial(self._add_frame, turn, frame, queue, delay))
                case act.Ack(delivery):
                    turn.ack.append(delivery)
                case _:
                    rest.append(action)
        turn.post += self._worker.commands.events()
        refused: list[Stored] = []
        self._persist(lambda: self._settle_all(turn, rest, refused))

    def _failing(self, states: bytes, data: bytes, faults: Mapping[str, QnbError]) -> tuple[bytes, bytes]:
        """The outcomes, of which those have failed whose values could not be stored."""
        outcomes = self._signer.unpack(OUTCOMES, data, Outcomes)
        entries = decode_entries(outcomes.values) if outcomes.values[:1] == REFERRING else []
        found = {at: fault_of(blobs, faults) for at, (_, blobs) in enumerate(entries)}
        failures = {at: own_failure(error) for at, error in found.items() if error}
        if not failures:
            return states, data
        before = enumerate(states or bytes([DONE]) * len(entries))
        states = bytes(FAILED if at in failures else state for at, state in before)
        values = encode_entries([(None, []) if at in failures else entry for at, entry in enumerate(entries)])
        outcomes = replace(outcomes, states=states, values=values, failures=outcomes.failures | failures)
        return states, self._signer.pack(OUTCOMES, outcomes)

    def _add_new(self, turn: Turn, record: Stored, reply_to: str) -> None:
        """Two workers may cut a frame's calls differently, and a backend refuses an equal start only."""
        for part in self._without_outcome(record):
            self._add_outcome(turn, part, reply_to)

    def _without_outcome(self, record: Stored) -> list[Stored]:
        """The record, cut to calls that no stored record is about."""
        spans = [(s.first, s.count) for s in self._backend.fetch_many(record.run, [(record.first, record.count)])]
        parts = gaps(record.first, record.count, spans)
        if parts == [(record.first, record.count)]:
            return [record]
        outcomes = self._signer.unpack(OUTCOMES, record.data, Outcomes)
        found = []
        for first, count in parts:
            start = first - record.first
            part = slice_outcomes(outcomes, start, start + count)
            found.append(Stored(record.run, first, count, self._signer.pack(OUTCOMES, part)))
        return found

    def _add_frame(self, turn: Turn, frame: Frame, queue: str, delay: float) -> None:
        put = partial(put_sealed, self._backend, self._signer.about(frame.run)) if self._backend.blobs else None
        frame = lighten(frame, self._broker.features.limits.message_bytes, put)
        body = self._signer.pack(FRAME, frame)
        turn.publish.append(Envelope(queue, body, f"{frame.run}:{frame.first}", frame.options.priority, delay))

    def _add_outcome(self, turn: Turn, stored: Stored, reply_to: str) -> None:
        limit = self._broker.features.limits.message_bytes
        most = OUTCOME_BYTES if self._backend.blobs or limit is None else limit
        most = min(most, getattr(self._backend, "record_bytes", None) or most)  # of a backend that has such a bound
        if len(stored.data) > most:
            outcomes = self._signer.unpack(OUTCOMES, stored.data, Outcomes)
            if outcomes.count > 1:
                middle = outcomes.count // 2
                for start, stop in ((0, middle), (middle, outcomes.count)):
                    part = slice_outcomes(outcomes, start, stop)
                    data = self._signer.pack(OUTCOMES, part)
                    self._add_outcome(turn, Stored(part.run, part.first, part.count, data), reply_to)
                return
            # No call fails for what it has shown or printed.
            for spare in ({"displays": {0: [_NO_ROOM_TO_SHOW]}}, {"displays": {}, "outputs": {0: _NO_ROOM}}):
                if len(stored.data) > most and any(getattr(outcomes, name) for name in spare):
                    data = self._signer.pack(OUTCOMES, replace(outcomes, **spare))
                    stored = Stored(stored.run, stored.first, 1, data)
            if len(stored.data) > most:
                stored = self._too_large(stored, outcomes, most)
        turn.store.append(stored)
        kind, body = "outcomes", stored.data
        if limit is not None and len(body) > limit:
            kind = "stored"
            body = self._signer.about(stored.run).seal(NOTE, encode((stored.run, stored.first, stored.count)))
        turn.post += [Note(peer, kind, body) for peer in self._hearers(stored.run, reply_to)]

    def _hearers(self, run: str, reply_to: str) -> list[str]:
        """Who is told what becomes of a run: the session that submitted it, and whoever follows it."""
        others = [peer for peer in self._worker.commands.followers(run) if peer != reply_to]
        return [reply_to, *others] if reply_to else others

    def _too_large(self, stored: Stored, outcomes: Outcomes, most: int) -> Stored:
        """The failure that stands for a result which no backend would take: it would be refused for ever."""
        size = f"{len(stored.data):,} bytes, and {self._backend.url} takes {most:,} at most"
        error = PayloadTooLarge(f"the result has {size}: write it to a file or a bucket, and return its name")
        failures = dict.fromkeys(range(outcomes.count), own_failure(error))
        states = bytes([FAILED]) * outcomes.count
        data = self._signer.pack(OUTCOMES, replace(outcomes, states=states, values=b"", failures=failures))
        return Stored(stored.run, stored.first, stored.count, data)

    def _settle_all(self, turn: Turn, rest: list[act.Action], refused: list[Stored]) -> None:
        """`refused` keeps, from one try to the next, what is still to be mended."""
        if turn:
            if self._at_once is not None:
                refused += self._at_once(self._consumer, turn)
            else:
                refused += self._settle_in_steps(turn)
            stored = turn.store
            turn.publish, turn.store, turn.post, turn.ack = [], [], [], []
            self._worker.dependencies.stored(stored, refused)
        while refused:
            self._mend(refused[:1])
            del refused[0]
        for action in rest:
            if isinstance(action, act.Release):
                self._consumer.release_many([action.delivery], action.delay)
            elif isinstance(action, act.Reject):
                self._consumer.reject_many([action.delivery], action.reason)
        rest.clear()

    def _settle_in_steps(self, turn: Turn) -> Sequence[Stored]:
        if turn.publish:
            try:
                self._broker.publish_many(turn.publish)
            except PublishFailed as error:  # the others are there
                turn.publish = list(error.failed)
                raise
            turn.publish = []
        refused = self._backend.store_many(turn.store) if turn.store else []
        if turn.post:
            self._bus.post_many(turn.post)
        if turn.ack:
            self._consumer.ack_many(turn.ack)
        return refused

    def _mend(self, refused: Sequence[Stored]) -> None:
        """Another worker has stored outcomes for the first of these calls: keep what it has none for."""
        for record in refused:
            if parts := self._without_outcome(record):
                self._mend(self._backend.store_many(parts))

    def _persist(self, settle: Callable[[], None]) -> None:
        """Try until it is done: what a lane has finished is not thrown away because a server is being restarted."""
        pause = 0.1
        while True:
            try:
                settle()
                return
            except QnbError as error:
                log.warning("cannot settle, trying again in %.1f s: %s", pause, error)
                if self._worker.cold:
                    raise _StoppedCold from error
                time.sleep(pause)
                pause = min(5.0, 2 * pause)
