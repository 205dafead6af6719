"""`key=`: the first submit with a key runs, and every other one, of whatever session, gets its outcome."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qnb.codec.functions import parameter_names
from qnb.codec.signing import RUN
from qnb.errors import UnknownTask, Unsupported
from qnb.message import Stored
from qnb.session.batch import Batch
from qnb.session.future import Future
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    from qnb.session.session import Session

log = logging.getLogger(__name__)


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
    assert options.key is not None
    run, first = _claim(session, options.key, session.new_run())
    if not first:
        try:
            return session.attach(run)[0]
        except UnknownTask:
            # Whoever took the key has not come to write the run down: it is submitted under the same name, and the
            # first outcome wins.
            log.warning("the first submit with key %r was not finished: submitted again", options.key)
    return _launch(session, run, function, options, (args, kwargs))[0]


def _claim(session: Session, key: str, run: str) -> tuple[str, bool]:
    """The run that a key belongs to, and whether it is this one. A backend's first outcome wins, and this is one."""
    name = f"key-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    refused = session.backend.store_many([Stored(name, 0, 1, session.signer.seal(RUN, run.encode()))])
    if not refused:
        return run, True
    [kept] = session.backend.fetch_many(name, [(0, 1)])
    owner = session.signer.unseal(RUN, kept.data).decode()
    return owner, owner == run


def _launch(
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
    batch.names = tuple(kwargs)
    session.launch(batch, "submit", function, 1)
    return batch
