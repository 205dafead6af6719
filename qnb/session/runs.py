"""Runs belong to the backend: what is written down of each when it starts."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from qnb.codec.functions import source_of
from qnb.codec.parts import part_bytes, put_sealed
from qnb.codec.references import (
    Referable,
    Reference,
    dumps_referring,
    encode_referring,
)
from qnb.codec.signing import BLOB, CODE, RUN
from qnb.errors import (
    CannotPickle,
    ConfigurationError,
    PayloadTooLarge,
    QnbError,
    StorageFull,
)
from qnb.message import RunRecord, ValueOf, task_id
from qnb.session.batch import Batch

if TYPE_CHECKING:
    from qnb.session.session import Session
    from qnb.session.stream import Stream

log = logging.getLogger(__name__)

KEPT_BYTES = 64 * 2**20  # of a run's arguments; above, `retry` has to be asked of the session that made it
STREAM_SECONDS = 1.0
SCHEDULE = "schedule"
TICKS_OPEN = 1000  # of a schedule: ticks before that have ended, or their outcomes have expired


class Detail(msgspec.Struct, frozen=True):
    """What is kept of a run besides its record. `parts` name the blobs that hold its arguments, column by column."""

    hash: bytes
    is_async: bool
    source: str
    options: dict[str, Any]
    labels: list[str]
    names: list[str]
    parts: list[str] = []
    by_name: bool = False  # of a function that workers import, who may open no pickle


class Past(Referable):
    """An argument of a run that was attached, which referred to something: it still does when the call is retried."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def reference(self, backend: Any) -> Reference:
        return self._reference

    def __repr__(self) -> str:
        if not isinstance(self._reference, ValueOf):
            return "<a kept value>"
        run, name = self._reference.run, self._reference.name or "a call"
        if self._reference.one:
            return f"<the value of {name}, {task_id(run, self._reference.first)}>"
        return f"<the values of {name}, {run}>"


class Recorder:
    """Writes runs down, in a thread of its own: neither a map nor a submit waits for it."""

    def __init__(self, session: Session) -> None:
        self.newest: str | None = None
        self._session = session
        self._work: list[Callable[[], None]] = []
        self._counts: dict[str, int] = {}  # of streams, as they were written down
        self._touched: dict[str, Stream] = {}
        self._lock = threading.Lock()
        self._alarm = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def began(self, batch: Batch, kind: str, function: Any) -> None:
        """A map, starmap or sweep has begun. Its arguments are taken as they are now."""
        self.newest = batch.run
        arguments = self._arguments(batch)
        with self._lock:
            self._work.append(partial(self._save_batch, batch, kind, function, arguments))
        self._wake()

    def save_now(self, batch: Batch, kind: str, function: Any) -> None:
        """The same, in this thread."""
        self._save_batch(batch, kind, function, self._arguments(batch))

    def grew(self, stream: Stream) -> None:
        """A stream of submits has been sent more calls; its count is written down at most once a second."""
        if stream.run not in self._touched:
            with self._lock:
                self._touched[stream.run] = stream
            self._wake()

    def close(self, timeout: float = 5.0) -> None:
        """Write down what is left."""
        self._closed = True
        self._alarm.set()
        if self._thread is not None:
            self._thread.join(timeout)

    # -----------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="qnb-recorder", daemon=True)
                    self._thread.start()
        self._alarm.set()

    def _run(self) -> None:
        wrote = 0.0
        while True:
            self._alarm.wait(STREAM_SECONDS if self._touched else None)
            self._alarm.clear()
            closed = self._closed
            try:
                self._write_batches()
                # One that is new is written down at once: should this process die, there is its run all the same.
                if closed or time.monotonic() - wrote >= STREAM_SECONDS or set(self._touched) - set(self._counts):
                    wrote = time.monotonic()
                    self._write_streams()
            except QnbError as error:
                log.warning("session %s: a run is not written down yet: %s", self._session.name, error)
                time.sleep(0.5)
                self._alarm.set()
            if closed:
                return

    def _write_batches(self) -> None:
        while self._work:
            self._try(self._work[0])
            with self._lock:
                self._work.pop(0)

    def _write_streams(self) -> None:
        for run, stream in list(self._touched.items()):
            with self._lock:
                del self._touched[run]  # first, so that what is sent meanwhile is written down next time
            count = stream.count
            if count != self._counts.get(run):
                try:
                    self._try(partial(self._save, stream, "submits", stream.origin, count, ([], [], [])))
                except QnbError:
                    with self._lock:
                        self._touched[run] = stream
                    raise
                self._counts[run] = count

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except QnbError:
            raise
        except Exception:  # one run that cannot be written down must not keep others from it
            log.exception("session %s: a run cannot be written down", self._session.name)

    def _save_batch(self, batch: Batch, kind: str, function: Any, arguments: bytes | None) -> None:
        labels = [label for label, _ in batch.parameters]
        try:
            parts = self._keep(batch, arguments)
        except (StorageFull, PayloadTooLarge) as error:  # as if they were too large to be kept: the run itself is known
            log.warning("session %s: arguments of run %s are not kept: %s", self._session.name, batch.run, error)
            parts = []
        self._save(batch, kind, function, len(batch), (labels, list(batch.names), parts))

    def _save(
        self, run: Batch | Stream, kind: str, function: Any, count: int, columns: tuple[list[str], list[str], list[str]]
    ) -> None:
        session, shipped, options = self._session, run.function, run.options
        by_name = isinstance(run, Batch) and run.by_name
        detail = Detail(shipped.hash, shipped.is_async, source_of(function), asdict(options), *columns, by_name)
        data = session.signer.pack(RUN, detail)
        name = options.name or shipped.name
        session.backend.save_run(RunRecord(run.run, kind, name, count, run.created_at, session.name, data))

    def _arguments(self, batch: Batch) -> bytes | None:
        """All arguments, column by column; None where they cannot be kept, or are too large to be kept twice."""
        columns = [values for _, values in batch.parameters]
        if not self._session.backend.blobs:
            return None
        first = sum(sys.getsizeof(values[0]) for values in columns if values)
        if first * len(batch) > KEPT_BYTES:
            return None
        try:
            data, references = dumps_referring(columns, self._session.backend)
        except (CannotPickle, ConfigurationError):  # told to whoever made the run
            return None
        if references:
            data = encode_referring([(data, references)])
        return data if len(data) <= KEPT_BYTES else None

    def _keep(self, batch: Batch, arguments: bytes | None) -> list[str]:
        """Put the function and the arguments into blobs; the names of the latter."""
        backend, signer = self._session.backend, self._session.signer
        if not backend.blobs:
            return []
        if batch.function.code is not None:
            put_sealed(backend, signer, batch.function.hash.hex(), CODE, batch.function.code)
        parts: list[str] = []
        most = part_bytes(backend)
        for start in range(0, len(arguments or b""), most):
            parts.append(f"{batch.run}-args-{len(parts)}")
            backend.put_blob(parts[-1], signer.seal(BLOB, (arguments or b"")[start : start + most]))
        return parts
