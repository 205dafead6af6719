"""Calls that wait for other calls' values: what is known, what is missing, who may start. No I/O, no clock.

The frame of such a call is held on its lease, by whichever worker took it, until what it waits for is there. So a graph
needs nobody but its workers: one that dies gives its frames back, and another looks anew at what the backend has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from qnb.codec.failures import own_failure
from qnb.codec.outcomes import spans_of
from qnb.codec.parts import names_of
from qnb.codec.references import blobs_of, decode_referring
from qnb.errors import DependencyCancelled, DependencyFailed
from qnb.message import CANCELLED, DONE, FAILED, LOST, STATES, Failure, ValueOf, task_id
from qnb.worker.state import Held, Piece

RECENT_BYTES = 64 << 20  # of values that nobody waits for just now
RECENT = 4096
_CHAIN = 2000  # characters of an error that names a chain
_NOT_RUN = "not run, since "

Key = tuple[str, int, int]


class Known(msgspec.Struct, frozen=True):
    """The end of a call: `value` by itself (codec/references.py) when it is done, else how it failed.

    `own`: no outcome says so, but this worker, who cannot get at one; whoever asks next may be luckier.
    """

    state: int
    value: bytes = b""
    failure: Failure | None = None
    own: bool = False


class Gathering(msgspec.Struct, eq=False):
    """The values of calls `first` … `first + count - 1` of a run; several calls may wait for the same ones."""

    need: ValueOf
    left: set[int]  # those that are missing
    values: dict[str, bytes] = {}
    failed: tuple[int, Known] | None = None
    waiting: dict[int, Blocked] = {}  # by id
    bytes: int = 0

    def take(self, index: int, known: Known) -> None:
        """One of them has ended."""
        if index not in self.left or self.failed:
            return
        if known.state != DONE:
            self.failed = (index, known)
            return
        self.left.discard(index)
        self.values[task_id(self.need.run, index)] = known.value
        # What was put aside counts too: its files are kept as long as this is.
        self.bytes += len(known.value) + 100 + sum(size for blob in blobs_of(known.value) for _, size in names_of(blob))

    @property
    def over(self) -> bool:
        """Whether nobody has to wait for it any more."""
        return not self.left or self.failed is not None


class Blocked(msgspec.Struct, eq=False):
    """Call `index` of a held frame, and what it waits for."""

    held: Held
    index: int
    gatherings: list[Gathering]
    waits: int = 0  # for so many of them

    @property
    def failed(self) -> Gathering | None:
        """What will never be there."""
        return next((each for each in self.gatherings if each.failed), None)

    @property
    def ready(self) -> bool:
        """Whether all is there."""
        return not self.waits


class Graph:
    """What calls of this worker wait for."""

    def __init__(self) -> None:
        self.blocked: dict[int, dict[int, Blocked]] = {}  # by id of the held frame, and index
        self._singles: dict[str, dict[int, Gathering]] = {}
        self._spans: dict[str, dict[Key, Gathering]] = {}
        self._recent: dict[Key, Gathering] = {}
        self._recent_bytes = 0
        self._fresh: list[Gathering] = []  # that nobody has looked for

    def add(self, held: Held, spans: Iterable[tuple[int, int]]) -> list[Blocked]:
        """Look at what calls of a frame refer to; those that need not wait: they are ready, or have failed."""
        calls = decode_referring(held.frame.args)
        over: list[Blocked] = []
        for index in (index for first, count in spans for index in range(first, first + count)):
            needs = [each for each in calls[index - held.frame.first][1] if isinstance(each, ValueOf)]
            blocked = Blocked(held, index, list(dict.fromkeys(self._gather(need) for need in needs)))
            blocked.waits = sum(bool(each.left) for each in blocked.gatherings)
            if blocked.ready or blocked.failed:
                over.append(blocked)
                continue
            self.blocked.setdefault(id(held), {})[index] = blocked
            for gathering in blocked.gatherings:
                if gathering.left:
                    gathering.waiting[id(blocked)] = blocked
        return over

    def _gather(self, need: ValueOf) -> Gathering:
        key = (need.run, need.first, need.count)
        recent = self._recent.pop(key, None)
        if recent is not None:
            self._recent[key] = recent  # the one used last goes last
            return recent
        if need.count == 1:
            singles = self._singles.setdefault(need.run, {})
            if need.first not in singles:
                singles[need.first] = self._new(need, {need.first})
            return singles[need.first]
        spans = self._spans.setdefault(need.run, {})
        if key not in spans:
            spans[key] = self._new(need, set(range(need.first, need.first + need.count)))
        return spans[key]

    def _new(self, need: ValueOf, left: set[int]) -> Gathering:
        gathering = Gathering(need, left)
        self._fresh.append(gathering)
        return gathering

    def take_fresh(self) -> dict[str, set[int]]:
        """By run, what somebody waits for since this was asked last."""
        found: dict[str, set[int]] = {}
        for gathering in self._fresh:
            if not gathering.over:
                found.setdefault(gathering.need.run, set()).update(gathering.left)
        self._fresh = []
        return found

    @property
    def frames(self) -> list[Held]:
        """Frames of which calls wait."""
        return [next(iter(calls.values())).held for calls in self.blocked.values()]

    @property
    def runs(self) -> list[str]:
        """Runs of which something is missing."""
        return list({*self._singles, *self._spans})

    def wants(self, run: str) -> bool:
        """Whether something of a run is missing."""
        return run in self._singles or run in self._spans

    def missing(self, run: str) -> list[int]:
        """The calls of a run that somebody waits for, in order."""
        indices = set(self._singles.get(run, ()))
        return sorted(indices.union(*(each.left for each in self._spans.get(run, {}).values())))

    def wanted(self, run: str, first: int, count: int) -> list[int]:
        """Which of these calls somebody waits for."""
        singles, spans = self._singles.get(run, {}), self._spans.get(run, {})
        if not singles and not spans:
            return []
        left = [each.left for each in spans.values()]
        return [i for i in range(first, first + count) if i in singles or any(i in each for each in left)]

    def values(self) -> list[bytes]:
        """Every value that is here."""
        kept = [*self._recent.values(), *(each for calls in self._singles.values() for each in calls.values())]
        kept += [each for spans in self._spans.values() for each in spans.values()]
        return [value for gathering in kept for value in gathering.values.values()]

    def learn(self, run: str, known: Mapping[int, Known]) -> list[Blocked]:
        """Calls of a run have ended; who need not wait any longer."""
        ended: list[Gathering] = []
        singles, spans = self._singles.get(run, {}), self._spans.get(run, {})
        for index, end in known.items():
            if (single := singles.pop(index, None)) is not None:
                single.take(index, end)
                ended.append(single)
        for key, span in list(spans.items()):
            for index, end in known.items():
                span.take(index, end)
            if span.over:
                del spans[key]
                ended.append(span)
        self._forget_empty(run)
        over: dict[int, Blocked] = {}
        for gathering in ended:
            for number, blocked in gathering.waiting.items():
                blocked.waits -= 1
                if gathering.failed or blocked.ready:
                    over[number] = blocked
            gathering.waiting.clear()
            if gathering.failed is None or not gathering.failed[1].own:
                self._remember(gathering)
        for blocked in over.values():
            self._leave(blocked)
        return list(over.values())

    def _forget_empty(self, run: str) -> None:
        if run in self._singles and not self._singles[run]:
            del self._singles[run]
        if run in self._spans and not self._spans[run]:
            del self._spans[run]

    def _remember(self, gathering: Gathering) -> None:
        need = gathering.need
        self._recent[need.run, need.first, need.count] = gathering
        self._recent_bytes += gathering.bytes
        while len(self._recent) > RECENT or (self._recent and self._recent_bytes > RECENT_BYTES):
            self._recent_bytes -= self._recent.pop(next(iter(self._recent))).bytes

    def _leave(self, blocked: Blocked) -> None:
        """It waits no longer, for anything."""
        calls = self.blocked[id(blocked.held)]
        del calls[blocked.index]
        if not calls:
            del self.blocked[id(blocked.held)]
        for gathering in blocked.gatherings:
            was = gathering.waiting.pop(id(blocked), None)
            if was is not None and not gathering.waiting and not gathering.over:
                self._drop(gathering)

    def take_out(self, held: Held, first: int, count: int) -> list[int]:
        """These calls wait no longer, whatever becomes of them; those of them that did."""
        calls = self.blocked.get(id(held), {})
        found = [index for index in sorted(calls) if first <= index < first + count]
        for index in found:
            self._leave(calls[index])
        return found

    def _drop(self, gathering: Gathering) -> None:
        """Nobody waits for it any more."""
        need = gathering.need
        if need.count == 1:
            self._singles.get(need.run, {}).pop(need.first, None)
        else:
            self._spans.get(need.run, {}).pop((need.run, need.first, need.count), None)
        self._forget_empty(need.run)

    def take_all_out(self) -> list[Piece]:
        """Nothing waits any longer: all that did, as pieces."""
        pieces = []
        for held in self.frames:
            indices = self.take_out(held, held.frame.first, held.frame.count)
            pieces += [Piece(held, first, count) for first, count in spans_of(indices)]
        return pieces


def verdict_on(gathering: Gathering) -> tuple[int, Failure]:
    """State and failure of calls that are not run for want of these values: cancelled with them, or failed."""
    assert gathering.failed is not None
    index, known = gathering.failed
    failure = known.failure
    what = f"{gathering.need.name or 'a call'} ({task_id(gathering.need.run, index)})"
    if failure is not None and failure.message.startswith(_NOT_RUN):
        why = f"{what} was {failure.message}"
    elif known.state == CANCELLED:
        why = f"{what} was cancelled"
    else:
        told = f": {failure.type_name}: {failure.message}" if failure is not None else ""
        why = f"{what} {'was lost' if known.state == LOST else STATES[known.state]}{told}"
    if len(why) > _CHAIN:
        why = f"{why[: _CHAIN // 2]} … {why[-_CHAIN // 2 :]}"
    cancelled = known.state == CANCELLED
    error = (DependencyCancelled if cancelled else DependencyFailed)(_NOT_RUN + why)
    root = None if failure is None else failure.root or failure
    return CANCELLED if cancelled else FAILED, replace(own_failure(error), root=root)
