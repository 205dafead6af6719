"""A run of the backend as a Batch, in whatever kernel: filled with what there is, and following what is to come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from qnb.backends.base import Backend
from qnb.backends.schedules import Schedules
from qnb.codec.parts import get_sealed
from qnb.codec.pickling import loads
from qnb.codec.references import REFERRING, decode_referring, loads_referring
from qnb.codec.signing import BLOB, CODE, OUTCOMES, RUN
from qnb.errors import QnbError, UnknownTask
from qnb.message import Function, Outcomes, RunRecord
from qnb.session.batch import Batch
from qnb.session.options import TaskOptions
from qnb.session.runs import SCHEDULE, TICKS_OPEN, Detail, Past

if TYPE_CHECKING:
    from qnb.session.session import Session

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 10.0
RENEW_SECONDS = 3.0
APPEAR_SECONDS = 2.0  # a record is written a moment after its run has begun
TICKS_SECONDS = 0.5


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
            known = session.attached.get(run)
            if known is not None and len(known) == len(batch):
                return known
            session.attached[run] = batch
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
    batch.by_name = detail.by_name
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
    sealed = get_sealed(session.backend.get_blob, session.signer, function.hash.hex())
    if sealed is None:
        raise QnbError(f"the code of {function.name} is no longer in {session.backend_url}: define and run it anew")
    return msgspec.structs.replace(function, code=session.signer.unseal(CODE, sealed))
