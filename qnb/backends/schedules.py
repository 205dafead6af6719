"""Schedules in a backend, out of what every backend has: records of runs that are replaced, and outcomes of which the
first stored wins.

A schedule is a run of kind "schedule"; a tick is a call of it. Which schedules there are stands in the run `schedules`,
an id in each of its records. Who fires a tick stands in `<run>.t`: records 16 n … 16 n + 14 are the claims of tick n,
one after the other as their leases end, and record 16 n + 15 says that it was published.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from qnb.backends.base import RESULT_SECONDS, Backend
from qnb.codec.parts import stored_names
from qnb.codec.signing import RUN, Signer
from qnb.errors import ConfigurationError, MessageError
from qnb.message import Options, RunRecord, Stored
from qnb.settings import parse_url

log = logging.getLogger(__name__)

INDEX = "schedules"
KIND = "schedule"
CLAIMS = 15
LEASE_SECONDS = 10.0  # of a first claim; each further one has twice as long
_STEP = 16


class Tick(msgspec.Struct, frozen=True, array_like=True):
    """A claim: when the tick was due, when and by whom it was claimed, how many before it were missed."""

    due: float
    at: float
    worker: str
    missed: int = 0


class Plan(msgspec.Struct, frozen=True):
    """What is to be run when; the first fields are those of the details of any run.

    `args` is one call as it travels, or `blob` names it. `expires`: seconds from a tick. `archives` are the names of
    blobs that the function needs. `identity` tells whether another schedule takes this one's place.
    `last` is the tick that was fired last, `missed` counts those for which no worker was there.
    """

    hash: bytes
    is_async: bool
    source: str
    options: dict[str, Any]
    every: str
    zone: str
    function: str
    queue: str
    identity: str
    labels: list[str] = []
    names: list[str] = []
    parts: list[str] = []
    args: bytes = b""
    blob: str | None = None
    wire: Options = Options()
    expires: float | None = None
    archives: list[str] = []
    cancelled: bool = False
    renewed_at: float = 0.0
    last: Tick | None = None
    missed: int = 0


class Fired(msgspec.Struct, frozen=True):
    """The latest claim of tick `number`, how many claims there are, and whether it was published."""

    number: int
    tick: Tick
    claims: int
    sent: bool

    @property
    def lease_until(self) -> float:
        """When somebody else may claim it."""
        return self.tick.at + LEASE_SECONDS * 2.0 ** (self.claims - 1)


class Schedules:
    """Reads and writes them; safe from any thread, as the backend is."""

    def __init__(self, backend: Backend, signer: Signer) -> None:
        self._backend = backend
        self._signer = signer

    @property
    def kept_seconds(self) -> float:
        """How long the backend keeps what is not renewed."""
        try:
            return parse_url(self._backend.url).number("expires", RESULT_SECONDS)
        except ConfigurationError:
            return RESULT_SECONDS

    def runs(self) -> list[str]:
        """The runs of all schedules that were registered and have not expired; those cancelled among them."""
        found: dict[str, None] = {}
        for record in self._backend.fetch_many(INDEX):
            try:
                found[self._signer.unseal(RUN, record.data).decode()] = None
            except MessageError:  # of someone with another key
                continue
        return list(found)

    def register(self, run: str, plan: Plan) -> None:
        """Have it found by workers. Again from time to time, for it expires as all outcomes do."""
        if (pin := getattr(self._backend, "pin", None)) is not None:  # a backend that drops what it has no room for
            pin(self._needs(plan))
        taken = [record.first for record in self._backend.fetch_many(INDEX)]
        slot = max(taken, default=-1) + 1
        data = self._signer.seal(RUN, run.encode())
        while self._backend.store_many([Stored(INDEX, slot, 1, data)]):
            slot += 1

    def load(self, run: str) -> tuple[RunRecord, Plan] | None:
        """The record and the plan, as they are now; None when it is gone."""
        record = self._backend.load_run(run)
        return None if record is None else (record, self._signer.unpack(RUN, record.data, Plan))

    def save(self, record: RunRecord, plan: Plan) -> None:
        """Store or replace it."""
        data = self._signer.about(record.run).pack(RUN, plan)
        self._backend.save_run(replace(record, data=data))

    def all(self) -> list[tuple[RunRecord, Plan]]:
        """Those that are not cancelled, oldest first."""
        found = []
        for run in self.runs():
            try:
                loaded = self.load(run)
            except MessageError:
                continue
            if loaded is not None and not loaded[1].cancelled:
                found.append(loaded)
        return sorted(found, key=lambda pair: pair[0].created_at)

    def cancel(self, run: str) -> None:
        """Fire it no more."""
        loaded = self.load(run)
        if loaded is not None:
            self.save(loaded[0], replace(loaded[1], cancelled=True))

    def fired(self, run: str, since: int = 0) -> list[Fired]:
        """What is known of ticks from number `since` on, in order."""
        claims: dict[int, list[Tick]] = {}
        sent: set[int] = set()
        for record in self._backend.fetch_many(f"{run}.t", [(since * _STEP, 1 << 30)]):
            number, place = divmod(record.first, _STEP)
            if place == CLAIMS:
                sent.add(number)
            else:
                claims.setdefault(number, []).append(self._signer.unpack(RUN, record.data, Tick))
        return [Fired(n, max(c, key=lambda t: t.at), len(c), n in sent) for n, c in sorted(claims.items())]

    def claim(self, run: str, number: int, attempt: int, tick: Tick) -> bool:
        """Whether this claim of a tick is the first one, or the first after another's lease."""
        return attempt < CLAIMS and not self._store(run, number * _STEP + attempt, tick)

    def published(self, run: str, number: int, tick: Tick) -> None:
        """It is on its queue."""
        self._store(run, number * _STEP + CLAIMS, tick)

    def _store(self, run: str, first: int, tick: Tick) -> Sequence[Stored]:
        data = self._signer.about(run).pack(RUN, tick)
        return self._backend.store_many([Stored(f"{run}.t", first, 1, data)])

    def renew(self, record: RunRecord, plan: Plan, now: float) -> None:
        """Keep what it needs for as long again."""
        for key in self._needs(plan):
            if (data := self._backend.get_blob(key)) is not None:
                self._backend.put_blob(key, data)
        self.save(record, replace(plan, renewed_at=now))
        self.register(record.run, plan)

    def _needs(self, plan: Plan) -> list[str]:
        """The blobs that its calls are made of, as they are stored; under whichever key."""
        keys = [plan.hash.hex(), *([] if plan.blob is None else [plan.blob]), *plan.archives]
        return [name for key in keys for name in stored_names(key, self._signer)]
