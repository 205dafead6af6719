"""`session.every(…)` and `session.schedules()`: calls that are made again and again, kept in the backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, overload

from msgspec.structs import replace

from qnb.backends.base import Backend
from qnb.backends.schedules import KIND, Plan, Schedules
from qnb.codec.cadence import Cadence, as_text, offset_name
from qnb.codec.code import read
from qnb.codec.functions import source_of
from qnb.codec.parts import get_sealed, key_of, put_sealed
from qnb.codec.payloads import decode_calls
from qnb.codec.pickling import dumps, loads
from qnb.codec.signing import BLOB, CODE, RUN, Signer
from qnb.errors import ConfigurationError, QnbError, UnknownTask, Unsupported
from qnb.message import RunRecord
from qnb.session.calls import as_function, pack_frames, pack_plain
from qnb.session.task import Task
from qnb.settings import local_zone

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.batch import Batch
    from qnb.session.options import TaskOptions
    from qnb.session.session import Session

INLINE_BYTES = 65536  # of arguments; larger ones are a blob
ALL_TICKS = 1 << 40
_SETTLE_SECONDS = 0.1
_COLUMNS = ["name", "every", "tz", "function", "next_at", "last_at", "late_s", "fired", "missed", "run"]


class Schedule:
    """A call that workers make again and again: `.next_at`, `.last_at`, `.fired`, `.cancel()`, `.attach()`."""

    def __init__(self, kept: Schedules, record: RunRecord, plan: Plan, session: Session | None = None) -> None:
        self._kept = kept
        self._record = record
        self._plan = plan
        self._session = session

    @property
    def id(self) -> str:
        """The run whose calls its ticks are."""
        return self._record.run

    @property
    def name(self) -> str:
        """As given, else the function's."""
        return self._record.name

    @property
    def every(self) -> str:
        """The interval or cron expression."""
        return self._plan.every

    @property
    def next_at(self) -> datetime | None:
        """When it is due next (UTC); None once it is cancelled."""
        plan = self._look()
        if plan is None or plan.cancelled:
            return None
        begun = self._record.created_at if plan.last is None else plan.last.due
        cadence = Cadence(plan.every, plan.zone, self._record.created_at)
        due = cadence.due(begun, time.time())
        return datetime.fromtimestamp(due[0] if due else cadence.after(begun), UTC)

    @property
    def last_at(self) -> datetime | None:
        """When it was fired last (UTC)."""
        plan = self._look() or self._plan
        return None if plan.last is None else datetime.fromtimestamp(plan.last.at, UTC)

    @property
    def fired(self) -> int:
        """How often."""
        self._look()
        return self._record.count or 0

    @property
    def cancelled(self) -> bool:
        """Whether it is fired no more."""
        plan = self._look()
        return plan is None or plan.cancelled

    def cancel(self) -> None:
        """Fire it no more; a call that is queued never starts, one that runs goes on."""
        if self._session is not None:
            self._session.cancel_calls([(self.id, 0, ALL_TICKS)])
        for _ in range(10):
            self._kept.cancel(self.id)
            time.sleep(_SETTLE_SECONDS)  # a worker may be writing down a tick, as it was before
            if self.cancelled:
                return
        raise QnbError(f"schedule {self.id} is written to by others: cancel it again")

    def attach(self) -> Batch:
        """The Batch of the ticks fired so far; attach again for later ones."""
        if self._session is None:
            raise ConfigurationError("there is no session here: session.attach(run) gives its calls")
        return self._session.attach(self.id)

    def _look(self) -> Plan | None:
        """As it is now; None when it was forgotten."""
        loaded = self._kept.load(self.id)
        if loaded is None:
            return None
        self._record, self._plan = loaded
        return self._plan

    def __repr__(self) -> str:
        if self.cancelled:
            return f"<Schedule {self.id} {self.name}, cancelled>"
        at = self.next_at
        when = "" if at is None else f", next at {at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
        return f"<Schedule {self.id} {self.name}, every {self.every!r}{when}, fired {self.fired} times>"

    def row(self) -> tuple[Any, ...]:
        """As a row of the table."""
        plan = self._plan
        late = None if plan.last is None else plan.last.at - plan.last.due
        return (
            self.name, plan.every, plan.zone, plan.function, self.next_at, self.last_at, late, self._record.count or 0,
            plan.missed, self.id,
        )  # fmt: skip


class SchedulesTable:
    """All schedules in the backend: a sequence of Schedule; `.df` is a DataFrame, and so it is shown."""

    def __init__(self, found: list[Schedule]) -> None:
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Schedule]:
        return iter(self._found)

    @overload
    def __getitem__(self, which: int | str) -> Schedule: ...
    @overload
    def __getitem__(self, which: slice) -> list[Schedule]: ...

    def __getitem__(self, which: int | str | slice) -> Schedule | list[Schedule]:
        """By number, name or id; UnknownTask when there is none."""
        if not isinstance(which, str):
            return self._found[which]
        for schedule in self._found:
            if which in (schedule.id, schedule.name):
                return schedule
        names = ", ".join(schedule.name for schedule in self._found) or "none"
        raise UnknownTask(f"no schedule {which!r}: there are {names}")

    @property
    def df(self) -> pd.DataFrame:
        """Columns: name every tz function next_at last_at late_s fired missed run. Times are UTC, `late_s` is how late
        the last one was, in seconds; `missed` counts ticks for which no worker was there."""
        import pandas as pd

        frame = pd.DataFrame([schedule.row() for schedule in self._found], columns=_COLUMNS)
        for column in ("next_at", "last_at"):
            frame[column] = pd.to_datetime(frame[column], utc=True)
        frame["late_s"] = frame["late_s"].astype("float64")
        return frame

    def __repr__(self) -> str:
        return self.df.to_string(index=False) if self._found else "no schedules"

    def _repr_html_(self) -> str:
        return str(self.df.to_html(index=False, notebook=True)) if self._found else "<i>no schedules</i>"


def table(backend: Backend, signer: Signer, session: Session | None = None) -> SchedulesTable:
    """What is kept in a backend."""
    if not backend.blobs:
        raise _unsupported()
    kept = Schedules(backend, signer)
    return SchedulesTable([Schedule(kept, record, plan, session) for record, plan in kept.all()])


def every(
    session: Session,
    when: Any,
    function: Callable[..., Any] | str,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    name: str | None,
    tz: str | tzinfo | None,
) -> Schedule:
    """Write a schedule down, and tell workers. One of the same name, or without names the same call at the same times,
    gives way to it: a cell may be run again."""
    if not session.backend.blobs:
        raise _unsupported()
    task = function if isinstance(function, Task) else session.task(function)
    options, inner = task.task_options, as_function(task.function)
    if options.key is not None or options.delay or options.eta is not None:
        raise ConfigurationError("key=, delay= and eta= are for a single call: leave them out of what is scheduled")
    text, zone, now = as_text(when), _zone(tz), time.time()
    Cadence(text, zone, now)
    plan = _plan(session, inner, call, options, (text, zone))
    chosen = name or options.name or plan.function
    if name is not None:
        plan = replace(plan, identity=f"name {name}")
    record = RunRecord(session.new_run(), KIND, chosen, 0, now, session.name)
    kept = Schedules(session.backend, session.signer)
    before = [Schedule(kept, *old, session) for old in kept.all() if old[1].identity == plan.identity]
    kept.save(record, replace(plan, renewed_at=now))
    kept.register(record.run, plan)
    for schedule in before:
        schedule.cancel()
    session.control.tell([("schedules", {})])
    return Schedule(kept, record, plan, session)


def _plan(
    session: Session,
    function: Callable[..., Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    options: TaskOptions,
    when: tuple[str, str],
) -> Plan:
    backend, signer = session.backend, session.signer
    shipped = session.ship_function(function)
    code = shipped.code or b""
    put_sealed(backend, signer, shipped.hash.hex(), CODE, code)
    # Whole: what is put aside in the blob store would be gone one day, and the schedule would not.
    [(_, args)] = pack_frames([pack_plain(shipped, function, *call) or dumps(call)])
    digest = key_of(args)
    blob = None
    if len(args) > INLINE_BYTES:
        blob = digest
        put_sealed(backend, signer, blob, BLOB, args)
        args = b""
    return Plan(
        shipped.hash, shipped.is_async, source_of(function), asdict(options), *when, shipped.name,
        options.queue or session.queue, f"{shipped.name} {' '.join(when)} {digest}",
        args=args, blob=blob, wire=options.on_wire(), expires=options.expires,
        archives=[archive.hash for archive in read(code).archives],
    )  # fmt: skip


def complete(session: Session, batch: Batch, record: RunRecord) -> None:
    """The arguments of a schedule's calls, which are the same for all."""
    plan = session.signer.unpack(RUN, record.data, Plan)
    data = plan.args
    if plan.blob is not None:
        sealed = get_sealed(session.backend.get_blob, session.signer, plan.blob)
        data = b"" if sealed is None else session.signer.unseal(BLOB, sealed)
    batch.function = replace(batch.function, name=plan.function)
    if not data:
        batch.incomplete = True
        return
    pickled, calls = decode_calls(data)
    call = next(iter(calls))
    args, kwargs = loads(call) if pickled else call
    labels = [*(f"arg{i}" for i in range(len(args))), *kwargs]
    values = [*args, *kwargs.values()]
    batch.parameters = [(label, [value] * len(batch)) for label, value in zip(labels, values, strict=True)]
    batch.names = tuple(kwargs)


def _zone(tz: str | tzinfo | None) -> str:
    """The name of the zone that was given, else of this machine's."""
    if tz is None:
        return local_zone() or offset_name()
    if isinstance(tz, str):
        return tz
    if (key := getattr(tz, "key", None)) is not None:
        return str(key)
    offset = tz.utcoffset(None)
    if offset is None:
        raise ConfigurationError(f"tz={tz!r}: give a time zone's name, as 'Europe/Berlin'")
    minutes = round(offset / timedelta(minutes=1))
    return "UTC" if not minutes else f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _unsupported() -> Unsupported:
    return Unsupported(
        "schedules need a backend that keeps them, and results travel here (rpc:): name one, as in "
        "Session(broker, backend='sqlite:')"
    )
