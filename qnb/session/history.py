"""The runs in the backend: listed as a table, and forgotten."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qnb.backends.base import Backend
from qnb.codec.signing import OUTCOMES, RUN, Signer
from qnb.errors import MessageError
from qnb.message import DONE, STATES, Outcomes, RunRecord
from qnb.session import keyed
from qnb.session.runs import SCHEDULE, TICKS_OPEN, Detail

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.session import Session

log = logging.getLogger(__name__)

_COUNTED = ("done", "failed", "cancelled", "lost")
COLUMNS = ["run", "kind", "name", "version", "calls", *_COUNTED, "open", "created_at", "session"]
_OVER_KEPT = 10_000
# By backend: how the calls of runs that are over ended, which never changes.
_over: weakref.WeakKeyDictionary[Backend, dict[tuple[str, int], dict[str, int]]] = weakref.WeakKeyDictionary()


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


def forget(session: Session, run: str) -> None:
    """Remove it from the backend, and its arguments from there. What was cancelled of it stays so."""
    keyed.release(session, run)
    backend, record = session.backend, session.backend.load_run(run)
    if record is not None and (drop := getattr(backend, "forget_blobs", None)) is not None:
        try:
            drop(session.signer.unpack(RUN, record.data, Detail).parts)
        except MessageError as error:  # of someone with another key: nobody can tell what its arguments are called
            log.debug("run %s: %s", run, error)
    cancelled = [span for span in backend.revoked() if span[0] == run]
    backend.forget_run(run)
    backend.revoke_many(cancelled)  # they may be queued still, and are never to start
    backend.forget_run(f"{run}.t")  # the claims of its ticks, if it is a schedule's


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
    """How its calls ended. That takes reading all its outcomes, which need not be done again once all have
    ended."""
    over = _kept(backend)
    counts = over.get((run, calls))
    if counts is None:
        counts = _counts(backend.fetch_many(run), signer)
        if sum(counts.values()) >= calls:
            if len(over) >= _OVER_KEPT:
                over.clear()
            over[run, calls] = counts
    return counts


def _kept(backend: Backend) -> dict[tuple[str, int], dict[str, int]]:
    try:
        return _over.setdefault(backend, {})
    except TypeError:  # somebody's own, which cannot be a key
        return {}


def _counts(records: Sequence[Any], signer: Signer) -> dict[str, int]:
    """Each call once, though two workers may have cut a frame differently and stored it both."""
    counts, end = dict.fromkeys(_COUNTED, 0), 0
    for stored in records:  # by their first call
        counted = max(0, end - stored.first)
        if counted >= stored.count:
            continue
        try:
            states = signer.unpack(OUTCOMES, stored.data, Outcomes).states[counted:]
        except MessageError:  # of someone with another key, or altered: whoever attaches is told
            continue
        end = stored.first + stored.count
        for code in set(states) or {DONE}:
            counts[STATES[code]] += states.count(code) if states else stored.count - counted
    return counts
