"""Runs belong to the backend: written down when they start, listed, and given back as a Batch in another kernel."""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from qnb.backends.base import Backend
from qnb.backends.schedules import Schedules
from qnb.codec.functions import source_of
from qnb.codec.parts import part_bytes
from qnb.codec.pickling import loads
from qnb.codec.references import (
    REFERRING,
    Referable,
    Reference,
    decode_referring,
    dumps_referring,
    encode_referring,
    loads_referring,
)
from qnb.codec.signing import BLOB, CODE, OUTCOMES, RUN, Signer
from qnb.errors import (
    CannotPickle,
    ConfigurationError,
    MessageError,
    PayloadTooLarge,
    QnbError,
    StorageFull,
    UnknownTask,
)
from qnb.message import DONE, STATES, Function, Outcomes, RunRecord, ValueOf, task_id
from qnb.session.batch import Batch
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.session import Session
    from qnb.session.stream import Stream

log = logging.getLogger(__name__)

KEPT_BYTES = 64 * 2**20  # of a run's arguments; above, `retry` has to be asked of the session that made it
FOLLOW_SECONDS = 10.0
RENEW_SECONDS = 3.0
STREAM_SECONDS = 1.0
APPEAR_SECONDS = 2.0  # a record is written a moment after its run has begun
SCHEDULE = "schedule"
TICKS_OPEN = 1000  # of a schedule: ticks before that have ended, or their outcomes have expired
TICKS_SECONDS = 0.5
_COUNTED = ("done", "failed", "cancelled", "lost")
COLUMNS = ["run", "kind", "name", "version", "calls", *_COUNTED, "open", "created_at", "session"]
_OVER_KEPT = 10_000
# By backend: how the calls of runs that are over ended, which never changes.
_over: weakref.WeakKeyDictionary[Backend, dict[tuple[str, int], dict[str, int]]] = weakref.WeakKeyDictionary()


class Detail(msgspec.Struct, frozen=True):
    """What is kept of a run besides its record. `parts` name the blobs that hold its arguments, column by column."""

    hash: bytes
    is_async: bool
    source: str
    options: dict[str, Any]
    labels: list[str]
    names: list[str]
    parts: list[str] = []


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
        detail = Detail(shipped.hash, shipped.is_async, source_of(function), asdict(options), *columns)
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
            backend.put_blob(batch.function.hash.hex(), signer.seal(CODE, batch.function.code))
        parts: list[str] = []
        most = part_bytes(backend)
        for start in range(0, len(arguments or b""), most):
            parts.append(f"{batch.run}-args-{len(parts)}")
            backend.put_blob(parts[-1], signer.seal(BLOB, (arguments or b"")[start : start + most]))
        return parts


def attach(session: Session, run: str) -> Batch:
    """The Batch of a run in the backend: filled with the outcomes there are, and following what is to come.

    UnknownTask when nobody knows the run, BadSignature when it was signed with another key.
    """
    with session.attaching:
        here: Any = session.collector.sinks.get(run) or session.batches.get(run)
        if isinstance(here, Batch):
            return here
        record = _find(session.backend, run)
        batch = _load(session, record)
        if record.kind == SCHEDULE:
            return ticks(session, batch, record)
        if not len(batch):
            return batch
        if here is not None:  # this session's own submits: their futures are told, this is filled from the backend
            follow: Callable[[], None] = partial(_read, session, batch)
        else:
            follow = partial(tell_here, session, batch)
            session.collector.expect(batch, len(batch), followed=True)
    try:
        _read(session, batch) if here is not None else session.collector.fetch(run)
        if not batch.over:
            # Told first, then read once more: whatever is stored after the reading is told.
            follow()
            _read(session, batch) if here is not None else session.collector.fetch(run)
    except BaseException:
        if here is None:
            session.collector.forget(batch)
        raise
    if not batch.over:
        arguments = (session, batch, follow, RENEW_SECONDS if here is None else 0.5)
        threading.Thread(target=_follow, args=arguments, name=f"qnb-follow-{run}", daemon=True).start()
    return batch


def _load(session: Session, record: RunRecord) -> Batch:
    """A Batch as the record tells it, all of it open."""
    run = record.run
    detail = session.signer.unpack(RUN, record.data, Detail)
    function = Function(detail.hash, record.name, None, detail.is_async)
    parameters = _parameters(session, detail)
    batch = Batch(session, run, function, parameters, record.count or 0, TaskOptions(**detail.options))
    batch.created_at, batch.source, batch.names = record.created_at, detail.source, tuple(detail.names)
    batch.incomplete = (bool(detail.labels) and not parameters) or record.kind == "submits"
    batch.sent(0, len(batch), record.created_at)
    return batch


def _read(session: Session, batch: Batch) -> None:
    for record in session.backend.fetch_many(batch.run, batch.missing()):
        batch.absorb(session.signer.unpack(OUTCOMES, record.data, Outcomes))


def ticks(session: Session, batch: Batch, record: RunRecord) -> Batch:
    """The Batch of what a schedule has fired so far: filled from the backend until all of that is over."""
    from qnb.session.schedules import complete

    complete(session, batch, record)
    _read(session, batch)
    expired = UnknownTask("this tick was fired so long ago that its outcome is no longer kept")
    latest = max(0, len(batch) - TICKS_OPEN)
    claimed = {tick.number for tick in Schedules(session.backend, session.signer).fired(batch.run, latest)}
    for first, count in batch.missing():
        for index in range(first, first + count):
            if index < latest or index not in claimed:  # a claim is kept as long as an outcome
                batch.fail(index, 1, expired)
    if not batch.over:
        arguments = (session, batch, partial(_read, session, batch), TICKS_SECONDS)
        threading.Thread(target=_follow, args=arguments, name=f"qnb-follow-{batch.run}", daemon=True).start()
    return batch


def tell_here(session: Session, batch: Batch) -> None:
    """Have workers tell this session, too, what becomes of a run; for a while."""
    arguments = {"run": batch.run, "peer": session.peer, "seconds": FOLLOW_SECONDS}
    session.control.tell([("follow", arguments)])


def _follow(session: Session, batch: Batch, follow: Callable[[], None], seconds: float) -> None:
    """Do that again and again until the run is over."""
    changed = threading.Event()
    stop = batch.on_change(lambda: changed.set() if batch.over else None)
    while not batch.over and not changed.wait(seconds) and not session.closed:
        try:
            follow()
        except QnbError as error:
            log.warning("cannot follow run %s just now: %s", batch.run, error)
    stop()


def appears(backend: Backend, run: str, seconds: float) -> bool:
    """Whether a run is written down within so long."""
    try:
        _find(backend, run, seconds)
    except UnknownTask:
        return False
    return True


def _find(backend: Backend, run: str, seconds: float = APPEAR_SECONDS) -> RunRecord:
    deadline = time.monotonic() + seconds
    while (record := backend.load_run(run)) is None:
        if time.monotonic() > deadline:
            raise UnknownTask(f"no run {run!r} in {backend.url}: session.runs() lists those that are there")
        time.sleep(0.05)
    return record


def _parameters(session: Session, detail: Detail) -> list[tuple[str, list[Any]]]:
    if not detail.parts:
        return []
    sealed = [session.backend.get_blob(part) for part in detail.parts]
    if None in sealed:
        return []
    data = b"".join(session.signer.unseal(BLOB, part) for part in sealed if part is not None)
    if data[:1] == REFERRING:
        [(pickled, references)] = decode_referring(data)
        columns = loads_referring(pickled, [Past(reference) for reference in references])
    else:
        columns = loads(data)
    return list(zip(detail.labels, columns, strict=True))


def load_code(session: Session, function: Function) -> Function:
    """The function with its code, from the blob store when it is not here."""
    if function.code is not None:
        return function
    sealed = session.backend.get_blob(function.hash.hex())
    if sealed is None:
        raise QnbError(f"the code of {function.name} is no longer in {session.backend_url}: define and run it anew")
    return msgspec.structs.replace(function, code=session.signer.unseal(CODE, sealed))


def table(backend: Backend, signer: Signer, limit: int = 100) -> pd.DataFrame:
    """The newest runs: a row each, indexed by run id: kind, name, version, calls, a count for each way to end, open,
    created_at (UTC) and session."""
    import pandas as pd

    frame = pd.DataFrame(rows(backend, signer, limit), columns=COLUMNS).set_index("run")
    frame["created_at"] = pd.to_datetime(frame["created_at"], unit="s", utc=True)
    return frame


def rows(backend: Backend, signer: Signer, limit: int) -> list[tuple[Any, ...]]:
    """The same without pandas: of each run its COLUMNS, created_at as Unix time."""
    return [_row(backend, signer, record) for record in backend.list_runs(limit)]


def _row(backend: Backend, signer: Signer, record: RunRecord) -> tuple[Any, ...]:
    try:
        version = signer.unpack(RUN, record.data, Detail).hash.hex()[:8]
    except MessageError:  # of someone with another key; what it says of itself is shown as it is
        version = "another key"
    calls = record.count or 0
    counts = dict.fromkeys(_COUNTED, 0) if version == "another key" else _counts_of(backend, signer, record.run, calls)
    left = max(0, calls - sum(counts.values()))
    if record.kind == SCHEDULE:  # what is older has expired
        left = min(left, TICKS_OPEN)
    return (
        record.run, record.kind, record.name, version, calls, *counts.values(), left, record.created_at, record.session
    )  # fmt: skip


def _counts_of(backend: Backend, signer: Signer, run: str, calls: int) -> dict[str, int]:
    """How its calls ended. That takes reading all its outcomes, which is done once when all have ended."""
    over = _over.setdefault(backend, {})
    counts = over.get((run, calls))
    if counts is None:
        counts = _counts(backend.fetch_many(run), signer)
        if sum(counts.values()) >= calls:
            if len(over) >= _OVER_KEPT:
                over.clear()
            over[run, calls] = counts
    return counts


def _counts(records: Sequence[Any], signer: Signer) -> dict[str, int]:
    counts = dict.fromkeys(_COUNTED, 0)
    for stored in records:
        try:
            states = signer.unpack(OUTCOMES, stored.data, Outcomes).states
        except MessageError:  # of someone with another key, or altered: whoever attaches is told
            continue
        for code in set(states) or {DONE}:
            counts[STATES[code]] += states.count(code) if states else stored.count
    return counts

