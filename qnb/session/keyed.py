"""`key=`: the first submit with a key runs, and every other one, of whatever session, gets its outcome."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qnb.codec.functions import Named, parameter_names
from qnb.codec.signing import RUN
from qnb.errors import MessageError, QnbError, Unsupported
from qnb.message import Stored
from qnb.session.attach import appears
from qnb.session.batch import Batch
from qnb.session.future import Future, is_small
from qnb.session.options import TaskOptions
from qnb.session.runs import Detail

if TYPE_CHECKING:
    from qnb.session.session import Session

log = logging.getLogger(__name__)

KEPT = 100
TAKEN_SECONDS = 10.0  # in which whoever took a key has written its run down


def submit(
    session: Session,
    function: Callable[..., Any],
    options: TaskOptions,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Future:
    """The future of the one call with this key. Unsupported where nothing keeps what belongs to a key."""
    if not session.backend.durable and session.backend.scheme == "rpc":
        raise Unsupported("key= needs a backend that keeps results: Session(broker, backend='sqlite:')")
    key = options.key
    assert key is not None
    # All that may fail here comes first: a key that is taken and never submitted would keep others waiting.
    batch = _batch(session, session.new_run(), function, options, (args, kwargs))
    session.aside.pack(args, kwargs)
    with _freed(session, key, batch):
        run = _claim(session, key, batch.run)
        if run == batch.run:
            return _begin(session, batch, function)
    if (known := session.keyed.get(run)) is not None:
        return known[0]
    if appears(session.backend, run, TAKEN_SECONDS):
        return _kept(session, session.attach(run))[0]
    # Whoever took the key died before the run was written down: it is submitted under the same name, and the
    # first outcome stored wins.
    log.warning("the first submit with key %r was not finished: submitted again", key)
    batch = _batch(session, run, function, options, (args, kwargs))
    with _freed(session, key, batch):
        return _begin(session, batch, function)


def _begin(session: Session, batch: Batch, function: Callable[..., Any]) -> Future:
    session.batches[batch.run] = batch  # first: whoever finds the record in another thread is to find this batch
    session.recorder.save_now(batch, "submit", function)
    session.send(batch, 1)
    return _kept(session, batch)[0]


@contextmanager
def _freed(session: Session, key: str, batch: Batch) -> Iterator[None]:
    """Whatever goes wrong inside, Ctrl-C too: who asks with the key next would wait for what was never sent."""
    try:
        yield
    except BaseException:
        session.keyed.pop(batch.run, None)
        try:
            _free(session, key, batch.run)
        except QnbError as error:
            log.warning("the key %r stays taken: %s", key, error)
        else:
            session.outbox.call_off(batch)  # for whoever has found the run meanwhile
        raise


def _kept(session: Session, batch: Batch) -> Batch:
    """Kept alive for a while: the same future for the same key, so that its output is shown once. Of those that are
    over only small ones, or a hundred large results would stay for nobody."""
    with session.attaching:
        for run, old in list(session.keyed.items()):
            if len(session.keyed) >= KEPT or (old.over and not _is_small(old)):
                session.keyed.pop(run, None)
        session.keyed[batch.run] = batch
    return batch


def _is_small(batch: Batch) -> bool:
    return is_small((batch.value(), batch.data.displays, [values for _, values in batch.parameters]))


def _name(key: str) -> str:
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def release(session: Session, run: str) -> None:
    """The run is forgotten: the next submit with its key, if it has one, runs anew."""
    session.keyed.pop(run, None)
    record = session.backend.load_run(run)
    try:
        key = None if record is None else session.signer.unpack(RUN, record.data, Detail).options.get("key")
        if key:
            _free(session, str(key), run)
    except MessageError as error:  # of somebody with another key to sign with
        log.debug("run %s: %s", run, error)


def _free(session: Session, key: str, run: str) -> None:
    """Nobody has the key any more, if it was this run's."""
    for taken in session.backend.fetch_many(_name(key), [(0, 1)]):
        if session.signer.unseal(RUN, taken.data).decode() == run:
            session.backend.forget_run(_name(key))


def _claim(session: Session, key: str, run: str) -> str:
    """The run that a key belongs to: this one, if nobody took it before. It is kept as an outcome: the first wins."""
    name = _name(key)
    refused = session.backend.store_many([Stored(name, 0, 1, session.signer.seal(RUN, run.encode()))])
    if not refused:
        return run
    [kept] = session.backend.fetch_many(name, [(0, 1)])
    return session.signer.unseal(RUN, kept.data).decode()


def _batch(
    session: Session,
    run: str,
    function: Callable[..., Any],
    options: TaskOptions,
    call: tuple[tuple[Any, ...], dict[str, Any]],
) -> Batch:
    args, kwargs = call
    labels = [*parameter_names(function, len(args)), *kwargs]
    parameters = [(label, [value]) for label, value in zip(labels, [*args, *kwargs.values()], strict=True)]
    batch = Batch(session, run, session.ship_function(function), parameters, 1, options)
    batch.names, batch.by_name = tuple(kwargs), isinstance(function, Named)
    return batch
