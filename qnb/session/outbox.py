"""Calls on their way out: single submits wait here for company, batches are cut into frames."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qnb.codec.outcomes import spans_of
from qnb.codec.payloads import encode_pickled
from qnb.codec.pickling import dumps
from qnb.codec.signing import OUTCOMES
from qnb.errors import QnbError
from qnb.message import CANCELLED, PENDING, QUEUED, Frame, Function, Note, Outcomes, Stored
from qnb.session.aside import Memo
from qnb.session.batch import Batch
from qnb.session.calls import travels_plain
from qnb.session.options import TaskOptions
from qnb.session.stream import FRAME_BYTES, Stream

if TYPE_CHECKING:
    from qnb.session.session import Session

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.002
SELDOM_SECONDS = 0.01
AWAKE_SECONDS = 0.05
BEAT_SECONDS = 0.9
REVOKE_SECONDS = 2.0  # between looks for workers that do not know yet what was cancelled
_STREAMS = 256
_FULL_BYTES = 16 * FRAME_BYTES  # so much of a stream may wait for the outbox's thread; then who submits sends it
_BATCH_BYTES = 4 * FRAME_BYTES
_BATCH_FRAMES = 64


class Outbox:
    """Of one session. `beats`: keep the session present on the bus, for embedded workers to see."""

    def __init__(self, session: Session, beats: bool) -> None:
        self._session = session
        self.waiting: deque[Stream] = deque()  # streams with calls to be sent
        self._streams: dict[tuple[bytes, TaskOptions], Stream] = {}
        self._latest: Stream | None = None
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._alarm = threading.Event()
        self._dozing = False
        self._flushes = 0
        self._thread = threading.Thread(target=self._run, args=(beats,), name="qnb-outbox", daemon=True)
        self._thread.start()

    def added(self, waiting: int) -> None:
        """So many bytes of a stream wait to be sent."""
        if waiting >= _FULL_BYTES:
            self.flush()
        elif (self._dozing or waiting >= FRAME_BYTES) and not self._alarm.is_set():
            self._alarm.set()

    def close(self) -> None:
        """End the thread; the session is closed."""
        self._alarm.set()
        self._thread.join(5.0)

    def flush(self) -> None:
        """Send every submit that still waits for company."""
        session = self._session
        if not self.waiting:
            return
        with self._sending:
            self._flushes += 1
            while self.waiting:
                stream = self.waiting[0]
                session.publisher.publish(stream.pack(session.sizes.stream(stream.function)), *self._where(stream))
                stream.sent()
                session.recorder.grew(stream)
                # Only now: after a Ctrl-C in between, the next flush finds it here.
                self.waiting.popleft()

    def flush_and_receive(self, timeout: float) -> Sequence[Note]:
        """Send, and read the inbox: in one round trip when a single call is all there is to be sent."""
        session = self._session
        if not timeout or len(self.waiting) != 1:
            self.flush()
            return ()
        frames: list[Frame] = []
        try:
            with self._sending:
                if len(self.waiting) != 1:
                    return ()  # another thread was first
                self._flushes += 1
                stream = self.waiting[0]
                frames = stream.pack(session.sizes.stream(stream.function))
                stream.sent()
                self.waiting.popleft()
                session.recorder.grew(stream)
            return session.publisher.publish_and_receive(frames, self._where(stream), session.inbox, 1000, timeout)
        except BaseException:  # Ctrl-C: whether they were taken is not known, so they are sent again
            if frames:
                stream.unsent(frames)
                self.waiting.append(stream)
            raise

    def _where(self, stream: Stream) -> tuple[str, float]:
        return stream.options.queue or self._session.queue, stream.options.pause

    def _run(self, beats: bool) -> None:
        """Send what nobody waits for, FLUSH_SECONDS after it was submitted."""
        session = self._session
        used = beaten = looked = time.monotonic()
        flushes = 0
        while not session.closed:
            if self._flushes != flushes:
                used = time.monotonic()
            sent = bool(self.waiting)
            try:
                self.flush()
                flushes = self._flushes
                if session.publisher.unsent:
                    time.sleep(0.5)
                    session.publisher.retry()
                if session.revocations.spans and time.monotonic() - looked > REVOKE_SECONDS:
                    looked = time.monotonic()
                    session.revocations.tell_newcomers()
                if beats and time.monotonic() - beaten > BEAT_SECONDS:
                    beaten = time.monotonic()
                    session.inbox.beat()
            except QnbError as error:
                log.warning("session %s: %s", session.name, error)
                time.sleep(0.5)
            # Awake while there are submits, so that a submit need not wake it: that would cost more than sending.
            self._dozing = time.monotonic() - used > AWAKE_SECONDS
            if not self._dozing:
                # Where each submit is waited for, who waits sends it, and looking less often costs less.
                self._alarm.wait(FLUSH_SECONDS if sent else SELDOM_SECONDS)  # a full frame ends it
                self._alarm.clear()
            elif not self.waiting:
                self._alarm.wait(1.0)
                self._alarm.clear()

    def stream(self, function: Function, options: TaskOptions) -> Stream:
        """Where submits of this version of a function with these options go."""
        latest = self._latest
        if latest is not None and latest.function is function and latest.options is options:
            return latest  # to hash the options would take longer
        session = self._session
        key = (function.hash, options)
        stream = self._streams.get(key)
        if stream is None:
            with self._lock:
                if len(self._streams) >= _STREAMS:
                    for old in [k for k, s in self._streams.items() if not s.pending]:
                        session.collector.sinks.pop(self._streams.pop(old).run, None)
                    self._latest = None
                stream = self._streams.setdefault(key, Stream(session, session.new_run(), function, options))
        self._latest = stream
        return stream

    def send_batch(self, batch: Batch, chunksize: int | None) -> None:
        """Publish all of a batch; a function never timed is tried on a few calls first, to size the rest."""
        sizes, tried = self._session.sizes, 0
        try:
            if chunksize is None and (tried := sizes.to_try(batch.function, len(batch))):
                self._send_calls(batch, 0, tried, 1)
                sizes.wait(batch, self._session.wait_for)
            self._send_calls(batch, tried, len(batch), chunksize)
        except BaseException as error:  # an argument that cannot travel, or Ctrl-C: nobody gets the batch to wait for
            self.call_off(batch)
            self._session.collector.settled(batch, batch.fail(0, len(batch), error))
            raise

    def call_off(self, batch: Batch) -> None:
        """Of a batch that is not sent to its end nothing more is to start, and whoever attaches to it is told so."""
        session, run, now = self._session, batch.run, time.time()
        unsent = spans_of([index for index, state in enumerate(batch.data.states) if state == PENDING])
        ends = [Outcomes(run, at, n, bytes([CANCELLED]) * n, b"", b"", session.name, now) for at, n in unsent]
        records = [Stored(run, end.first, end.count, session.signer.pack(OUTCOMES, end)) for end in ends]
        try:
            session.backend.store_many(records)
            if sent := spans_of([index for index, state in enumerate(batch.data.states) if state == QUEUED]):
                session.cancel_calls([(run, *span) for span in sent])
        except QnbError as error:
            log.warning("run %s, which was not sent to its end, cannot be called off: %s", run, error)

    def _send_calls(self, batch: Batch, start: int, stop: int, size: int | None) -> None:
        session, options = self._session, batch.options.on_wire()
        columns = [values for _, values in batch.parameters]
        plain, memo = travels_plain(batch.function, columns), Memo(columns, batch.by_name)
        frames: list[Frame] = []
        size_of_frames = 0
        while start < stop:
            end = min(stop, start + (size or session.sizes.frame(batch.function, len(batch))))
            if columns:
                args = session.aside.pack_rows([column[start:end] for column in columns], batch.names, plain, memo)
            else:
                args = encode_pickled([dumps(((), {}))] * (end - start))
            now, count = time.time(), end - start
            frames.append(Frame(batch.run, start, count, batch.function, args, options, session.peer, now))
            start, size_of_frames = end, size_of_frames + len(args)
            if size_of_frames > _BATCH_BYTES or len(frames) >= _BATCH_FRAMES:
                self._publish(frames, batch)
                frames, size_of_frames = [], 0
        self._publish(frames, batch)

    def _publish(self, frames: list[Frame], batch: Batch) -> None:
        session = self._session
        for frame in frames:
            batch.sent(frame.first, frame.count, frame.sent_at)
        session.publisher.publish(frames, batch.options.queue or session.queue, batch.options.pause)
