"""What a consumer has of its partitions: ready, delayed, held; and their ledgers. No input or output, no threads."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from qnb.brokers.kafka.ledger import Ledger
from qnb.brokers.kafka.records import Entry

Place = tuple[str, int]

# DONE is settled; GONE is lost sight of: whoever has the partition now hands it out.
READY, DELAYED, HELD, LAPSED, MOVING, DONE, GONE = range(7)
# How long the first messages wait for those of the other partitions, so that the most urgent come first.
_FIRST_SECONDS = 0.7
# A partition is paused while so much of it waits here.
FULL_MESSAGES, FULL_BYTES = 2000, 16 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Part:
    """One assigned partition. `position` is the next offset that is expected, -1 before the first."""

    place: Place
    ledger: Ledger
    begin: int  # where reading began
    position: int = -1
    bytes: int = 0
    paused: bool = False
    leaving: bool = False  # about to be someone else's
    cut: int = 0
    open: dict[int, Entry] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.open) >= FULL_MESSAGES or self.bytes >= FULL_BYTES

    @property
    def roomy(self) -> bool:
        return len(self.open) < FULL_MESSAGES // 2 and self.bytes < FULL_BYTES // 2


class Shelf:
    """All of it under the lock of its consumer."""

    def __init__(self) -> None:
        self.parts: dict[Place, Part] = {}
        self.dirty: set[Place] = set()
        self.claims: dict[bytes, Entry] = {}
        self.ready = 0
        self.held = 0
        self._ready: list[tuple[int, int, int, Entry]] = []
        self._delayed: list[tuple[float, int, Entry]] = []
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._parked: list[Entry] = []
        self._silent: set[Place] = set()
        self._open_at = 0.0

    # ------------------------------------------------------------------------------------------ partitions

    def add_part(self, place: Place, ledger: Ledger) -> None:
        self.parts[place] = Part(place, ledger, ledger.base)
        self._silent.add(place)
        self._open_at = time.monotonic() + _FIRST_SECONDS

    def leave(self, places: Iterable[Place]) -> list[Entry]:
        """Hand out no more of these partitions: what waits there is for their next owner. What is held of them."""
        held = []
        for part in [self.parts[place] for place in places if place in self.parts]:
            part.leaving = True
            for entry in part.open.values():
                if entry.state in (READY, DELAYED):
                    self._forget(entry)
                elif part.ledger.held(entry.offset):
                    held.append(entry)
        return held

    def drop_part(self, place: Place) -> list[Entry]:
        """Not ours any more; what was held of it and still is."""
        part = self.parts.pop(place, None)
        self._silent.discard(place)
        self.dirty.discard(place)
        if part is None:
            return []
        return [entry for entry in list(part.open.values()) if self._forget(entry) == HELD]

    def _forget(self, entry: Entry, new: int = GONE) -> int:
        state = entry.state
        if state not in (DONE, GONE):
            entry.state = new
        self.ready -= state == READY and not entry.parked
        self.held -= state == HELD
        return state

    def seen_end(self, place: Place, offset: int) -> None:
        """Nothing more there for now."""
        self._silent.discard(place)
        part = self.parts.get(place)
        if part is not None and offset > max(part.position, part.ledger.base):
            self._gap(part, offset)

    def _gap(self, part: Part, offset: int) -> None:
        """What lies between was deleted, or is none of ours: it cannot come any more."""
        begin = max(part.position, part.ledger.base)
        if begin == part.ledger.base:
            part.ledger.skip_to(offset)
        else:
            for each in range(begin, offset):
                part.ledger.finish(each)
        part.position = offset
        self.dirty.add(part.place)

    def put(self, entry: Entry) -> None:
        """A fetched message."""
        part = self.parts.get(entry.place)
        if part is None:
            return  # of a partition that has just gone
        self._silent.discard(part.place)
        if entry.offset < max(part.position, part.begin):  # the topic was removed and made again
            self.drop_part(part.place)
            part = self.parts[part.place] = Part(part.place, Ledger(entry.offset), entry.offset)
        if entry.offset > max(part.position, part.ledger.base):
            self._gap(part, entry.offset)
        part.position = entry.offset + 1
        if part.ledger.finished(entry.offset):
            return
        original = self.claims.pop(entry.claim, None) if entry.claim else None
        if original is not None and original.state != GONE:
            self._link(part, original, entry)
            return
        if entry.offset in part.open:
            return  # the copy of what is held here, see adopt()
        part.open[entry.offset] = entry
        part.bytes += len(entry.body)
        self._wait(entry, time.monotonic())

    def adopt(self, original: Entry, claim: bytes, place: Place, offset: int) -> None:
        """What is held here has been written to this place, whether that has been read already or not."""
        if self.claims.pop(claim, None) is None:
            return  # it has
        part = self.parts.get(place)
        if part is None:
            self._forget(original)  # that partition has gone meanwhile: its new owner hands it out
        else:
            self._link(
                part, original, replace(original, topic=place[0], partition=place[1], offset=offset, claim=claim)
            )

    def _link(self, part: Part, original: Entry, copy: Entry) -> None:
        """The copy of what is held here already: it has a new place."""
        if original.state == DONE:
            part.ledger.finish(copy.offset)
        else:
            original.topic, original.partition, original.offset = copy.topic, copy.partition, copy.offset
            original.before, original.linked = original.deliveries, True
            part.open[copy.offset] = original
            part.bytes += len(original.body)
            part.ledger.hold(copy.offset)
        self.dirty.add(part.place)

    # ------------------------------------------------------------------------------------------ waiting

    def _wait(self, entry: Entry, now: float) -> None:
        if entry.due > now:
            entry.state = DELAYED
            heapq.heappush(self._delayed, (entry.due, entry.number, entry))
        else:
            entry.state = READY
            self.ready += 1
            heapq.heappush(self._ready, (-entry.priority, entry.order, entry.number, entry))

    def promote(self, now: float) -> float | None:
        """Make ready what has fallen due; when the next one will."""
        while self._delayed:
            due, _, entry = self._delayed[0]
            if entry.state == DELAYED:
                if due > now:
                    return due
                self._wait(entry, now)
            heapq.heappop(self._delayed)
        return None

    def opens_at(self, now: float) -> float | None:
        """When the first messages may be handed out, if not now."""
        return self._open_at if self._silent and now < self._open_at else None

    def take(self, limit: int, now: float, lease: float, queues: Sequence[str]) -> list[Entry]:
        """Hand out the most urgent, then the oldest, of these queues; others are put aside."""
        taken: list[Entry] = []
        while self.ready and len(taken) < limit:
            entry = heapq.heappop(self._ready)[3]
            if entry.state == READY:
                self.ready -= 1
                if entry.queue in queues:
                    self._hand_out(entry, now + lease)
                    taken.append(entry)
                else:
                    entry.parked = True
                    self._parked.append(entry)
        if not self.ready:
            self._ready.clear()
        return taken

    def unpark(self) -> None:
        """What was put aside may be wanted again."""
        parked, self._parked = self._parked, []
        for entry in parked:
            if entry.state == READY and entry.parked:
                entry.parked = False
                self._wait(entry, entry.due)

    def queues_held(self) -> set[str]:
        return {entry.queue for entry in self.all_held()}

    def _hand_out(self, entry: Entry, deadline: float) -> None:
        entry.state, entry.deadline = HELD, deadline
        entry.turn += 1
        self.held += 1
        entry.deliveries = entry.before + self.parts[entry.place].ledger.hand_out(entry.offset)
        self.dirty.add(entry.place)
        heapq.heappush(self._deadlines, (deadline, entry.number, entry))

    def surplus(self, queue: str, limit: int) -> list[Entry]:
        """Take waiting ones out, to be given to someone else. Others of the same queue stay for later."""
        kept: list[tuple[int, int, int, Entry]] = []
        picked: list[Entry] = []
        while self.ready and len(picked) < limit and self._ready:
            item = heapq.heappop(self._ready)
            if item[3].state == READY and item[3].queue == queue:
                item[3].state = MOVING
                self.ready -= 1
                picked.append(item[3])
            elif item[3].state == READY:
                kept.append(item)
        for item in kept:
            heapq.heappush(self._ready, item)
        return picked

    # ------------------------------------------------------------------------------------------ held

    def mine(self, tokens: Iterable[tuple[Entry, int]], now: float) -> list[Entry]:
        """Those whose lease is not over."""
        return [e for e, turn in dict.fromkeys(tokens) if e.state == HELD and e.turn == turn and e.deadline > now]

    def move(self, entry: Entry) -> None:
        """It is being written elsewhere: nobody can settle it meanwhile."""
        self.held -= entry.state == HELD
        self.ready -= entry.state == READY and not entry.parked
        entry.parked = False
        entry.state = MOVING

    def finish(self, entry: Entry) -> None:
        """It is over with it."""
        if self._forget(entry, DONE) not in (DONE, GONE) and entry.offset >= 0:
            self.finish_at(entry.place, entry.offset)

    def finish_at(self, place: Place, offset: int) -> None:
        """It is over with what is there."""
        part = self.parts.get(place)
        if part is None:
            return
        found = part.open.pop(offset, None)
        if found is not None:
            part.bytes -= len(found.body)
        part.ledger.finish(offset)
        self.dirty.add(place)

    def back(self, entry: Entry, failed: bool, due: float = 0.0) -> None:
        """It waits again, here."""
        if entry.state in (DONE, GONE):
            return
        self.move(entry)
        entry.due = due
        part = self.parts.get(entry.place)
        if part is None or entry.offset < 0:
            entry.state = GONE
            return
        part.ledger.give_back(entry.offset, failed)
        self.dirty.add(entry.place)
        if part.leaving:
            entry.state = GONE
        else:
            self._wait(entry, time.monotonic())

    def extend(self, entry: Entry, deadline: float) -> None:
        if deadline < entry.deadline:
            heapq.heappush(self._deadlines, (deadline, entry.number, entry))
        entry.deadline = deadline

    def expired(self, now: float) -> list[Entry]:
        """Take out those whose lease is over: nobody can settle them any more."""
        over = []
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)[2]
            if entry.state == HELD and entry.deadline <= now:
                self.held -= 1
                entry.state = LAPSED
                over.append(entry)
            elif entry.state == HELD:
                heapq.heappush(self._deadlines, (entry.deadline, entry.number, entry))
        return over

    def next_deadline(self) -> float | None:
        """When a lease may be over, at the earliest."""
        while self._deadlines and self._deadlines[0][2].state != HELD:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def all_held(self) -> list[Entry]:
        found = [entry for part in self.parts.values() for entry in part.open.values() if entry.state == HELD]
        return found + [entry for entry in self.claims.values() if entry.state == HELD and entry.offset < 0]

    # ------------------------------------------------------------------------------------------ upkeep

    def purge(self, place: Place, end: int) -> int:
        """Drop what waits before this offset, read already or not; how many."""
        part = self.parts[place]
        count = part.ledger.finish_below(end)
        for offset, entry in list(part.open.items()):
            if part.ledger.finished(offset):
                self._forget(entry)
                del part.open[offset]
                part.bytes -= len(entry.body)
        self.dirty.add(place)
        return count

    def clogged(self) -> list[Entry]:
        """What has kept a partition's finished prefix back for so long that its ledger gets long."""
        found: list[Entry] = []
        for part in self.parts.values():
            if part.ledger.out_of_order > max(512, 4 * len(part.open)):
                blockers = [part.open[each] for each in part.ledger.blockers() if each in part.open]
                found += [entry for entry in blockers if entry.state in (READY, DELAYED, HELD)][:256]
        return found
