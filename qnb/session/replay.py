"""`Future.replay()`: a call once more, in this process, with the code and the arguments that were sent."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qnb.codec import archives
from qnb.codec.code import Archive
from qnb.codec.functions import open_function
from qnb.codec.parts import get_sealed
from qnb.codec.payloads import decode_calls
from qnb.codec.pickling import loads
from qnb.codec.plain import is_encoded
from qnb.codec.references import Call, Reference, dumps_referring, load_value, loads_referring, split_values
from qnb.codec.signing import BLOB, OUTCOMES
from qnb.errors import QnbError
from qnb.message import DONE, Blob, Outcomes, task_id
from qnb.session.attach import load_code
from qnb.session.batch import Batch
from qnb.session.stream import REPLAY_BYTES

if TYPE_CHECKING:
    from qnb.session.future import Owner
    from qnb.session.session import Session


def replay(owner: Owner, index: int, call: bytes | Call | None) -> Any:
    """Run call `index` of a run here; its own value or exception. QnbError when code or arguments are gone."""
    __tracebackhide__ = True
    if call is None and (not isinstance(owner, Batch) or owner.incomplete):
        raise QnbError(
            f"the arguments of {owner.run}:{index} are not here: those of a map are kept up to 64 MiB a run, those of "
            f"a submit up to {REPLAY_BYTES:,} bytes in the session that made it: call the function with them"
        )
    session, function = owner.session, load_code(owner.session, owner.function)
    with _shipped(session):
        opened = open_function(function.name, function.code or b"", lambda needed: _bring(session, needed))
        args, kwargs = _arguments(owner, index, call)
        value = opened.function(*args, **kwargs)
        return _awaited(value) if inspect.iscoroutine(value) else value


@contextlib.contextmanager
def _shipped(session: Session) -> Iterator[None]:
    """What `import` finds is afterwards as before."""
    before = archives.active()
    try:
        yield
    finally:
        if archives.active() != before:
            archives.activate([Archive("", digest) for digest in before], ())


def _bring(session: Session, needed: Sequence[Archive]) -> None:
    """Shipped modules: this process's own while their files are as they were sent, else what was sent."""
    own = session.ships_now()
    for archive in needed:
        if archive.hash in own or archive.data is not None or (archives.folder() / archive.hash).is_dir():
            continue
        sealed = get_sealed(session.backend.get_blob, session.signer, archive.hash)
        if sealed is None:
            where = session.backend_url
            raise QnbError(f"the modules shipped as {archive.name} are no longer in {where}: submit the call anew")
        archives.unpack_archive(archive, session.signer.unseal(BLOB, sealed))
    archives.activate(needed, own)


def _arguments(owner: Owner, index: int, call: bytes | Call | None) -> tuple[Sequence[Any], dict[str, Any]]:
    """As they were sent; what a call referred to is fetched."""
    session = owner.session
    if call is None:
        assert isinstance(owner, Batch)
        row = [values[index] for _, values in owner.parameters]
        positional = len(row) - len(owner.names)
        named = dict(zip(owner.names, row[positional:], strict=True))
        call = dumps_referring((row[:positional], named), session.backend)
    if isinstance(call, bytes):
        args, kwargs = next(iter(decode_calls(call)[1])) if is_encoded(call) else loads(call)
    else:
        args, kwargs = loads_referring(call[0], [_referred(session, reference) for reference in call[1]])
    return args, kwargs


def _referred(session: Session, reference: Reference) -> Any:
    """What a reference stands for; QnbError when the backend does not have it."""
    if isinstance(reference, Blob):
        return session.fetch(None, reference)
    run, first, stop = reference.run, reference.first, reference.first + reference.count
    found: dict[int, bytes] = {}
    for record in session.backend.fetch_many(run, [(first, reference.count)]):
        outcomes = session.signer.unpack(OUTCOMES, record.data, Outcomes)
        end = outcomes.first + outcomes.count
        done = [i for i in range(max(first, outcomes.first), min(stop, end)) if _is_done(outcomes, i)]
        values = split_values(outcomes.values, [i - outcomes.first for i in done])
        found |= {outcomes.first + position: value for position, value in values.items()}
    if missing := [i for i in range(first, stop) if i not in found]:
        raise QnbError(f"the call refers to the value of {task_id(run, missing[0])}, which there is none of (any more)")
    loaded = [load_value(found[i], loads, partial(session.fetch, None)) for i in range(first, stop)]
    return loaded[0] if reference.one else loaded


def _is_done(outcomes: Outcomes, index: int) -> bool:
    return not outcomes.states or outcomes.states[index - outcomes.first] == DONE


def _awaited(coroutine: Any) -> Any:
    """The value of a coroutine; in a notebook, whose own loop runs in this thread, from a loop in another."""
    __tracebackhide__ = True
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
