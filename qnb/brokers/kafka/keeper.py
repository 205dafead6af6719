"""What a consumer does besides receiving: leases that lapse, messages that move, and sharing with the others.

A partition belongs to one member of the group, and a member that works for an hour would sit on all that waits in its
partitions. So those that idle say what they want, those that have more than they take say so, and the waiting messages
are written again into a partition of one that wants them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from qnb.brokers.kafka.bus import Talk
from qnb.brokers.kafka.client import log
from qnb.brokers.kafka.member import Member
from qnb.brokers.kafka.records import Entry, Record, copy_of
from qnb.brokers.kafka.shelf import GONE, HELD, Place, Shelf
from qnb.brokers.memory.bus import Gate
from qnb.errors import QnbError

# Nobody has come for so long: what is ready may go to others.
_UNATTENDED_SECONDS = 0.05
# One that waits for so long asks the others.
_IDLE_SECONDS = 0.02
_OFFER_SECONDS = (0.2, 3.2)
_WANTED_SECONDS = 5.0
_TRIM_SECONDS, _TRIM_MESSAGES = 30.0, 5000
_GIVE_MOST = 500
_TURN_SECONDS = 5.0
# An assignment that lasts so long is one: partitions come and go while members do.
_FIT_SECONDS = 3.0


@dataclass(slots=True)
class Demand:
    """What the receiving thread does, as the keeper has to know."""

    waiting_since: float | None = None  # in a receive, with room, and nothing there
    last_seen: float = 0.0
    room: int = 0


class Keeper:
    """A thread of its own. All publishing is done here or by whoever settles; nothing is published under the lock."""

    def __init__(self, shelf: Shelf, name: str, queues: Callable[[], list[str]], changed: Callable[[], None]) -> None:
        self.demand = Demand()
        self._shelf, self._name, self._queues, self._changed = shelf, name, queues, changed
        self._member: Member | None = None
        self._gate = Gate()
        self._said: deque[Talk] = deque()
        self._wanted: dict[str, Talk] = {}
        self._wanted_at: dict[str, float] = {}
        self._lapsed: list[Entry] = []
        self._asked = False
        self._offer_at, self._offer_pause = 0.0, 0.0
        self._trim_at = time.monotonic() + _TRIM_SECONDS
        self._trims = True
        self._assigned = -1
        self._warned: set[str] = set()
        self._fit_at = float("inf")
        self._turns = count()
        self._leaving: set[str] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="qnb-kafka-keeper", daemon=True)

    def start(self, member: Member) -> None:
        self._member = member
        self._thread.start()

    @property
    def member(self) -> Member:
        assert self._member is not None
        return self._member

    def ring(self) -> None:
        """Look what there is to do."""
        self._gate.open()

    def hear(self, said: Talk) -> None:
        """From the bus's thread."""
        if said.sender != self._name or said.kind in ("removed", "topics"):
            self._said.append(said)
            self._gate.open()

    def close(self) -> None:
        self._closing = True
        self._gate.open()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(10.0)

    def _run(self) -> None:
        while not self._closing:
            try:
                wait = self._turn()
            except QnbError as error:
                log.info("%s: %s", self.member.context.url, error)
                wait = 0.2
            except Exception:
                log.exception("%s: a fault of qnb's own", self.member.context.url)
                wait = 1.0
            self._gate.wait(wait)

    def _turn(self) -> float:
        while self._said:
            self._answer(self._said.popleft())
        now = time.monotonic()
        with self.member.lock:
            self._lapsed += self._shelf.expired(now)
            clogged = self._shelf.clogged() if self._shelf.dirty else []
        if self._lapsed:
            self._lapse()
        if clogged:
            self.move(clogged)
        if self._leaving:
            self._subscribe()
        if self._assigned != self.member.assigned:
            self._assigned = self.member.assigned
            self._asked = False
            self._fit_at = now + _FIT_SECONDS
        if now >= self._fit_at:
            self._fit_at = float("inf")
            self._fit()
        wait = min(self._offer(now), self._ask(now))
        self._trim(now)
        with self.member.lock:
            deadline = self._shelf.next_deadline()
            retry = 0.1 if self._lapsed or self._leaving else _TURN_SECONDS
        return max(
            0.001,
            min(wait, retry, self._fit_at - now, _TURN_SECONDS if deadline is None else deadline - time.monotonic()),
        )

    # ------------------------------------------------------------------------------------------ where to

    def _mine(self, topic: str) -> list[int]:
        return [partition for name, partition in list(self._shelf.parts) if name == topic]

    def alone(self, queue: str) -> bool:
        """Whether all of the queue's partitions are here."""
        topics = self.member.context.topics
        return all(len(self._mine(topic)) >= topics.known(topic) for topic in topics.of_queue(queue))

    def elsewhere(self, entry: Entry) -> Place:
        """A partition of one that wants it, else of someone else, else any."""
        topics = self.member.context.topics
        topic = topics.names.topic(entry.queue, entry.priority)
        now = time.monotonic()
        for sender, said in list(self._wanted.items()):
            if said.queue == entry.queue and self._wanted_at[sender] > now - _WANTED_SECONDS:
                return self._place_of(said, topic)
        total = topics.count(topic)
        mine = set(self._mine(topic))
        others = [partition for partition in range(total) if partition not in mine]
        if not others and topic != topics.names.topic(entry.queue):
            topic = topics.names.topic(entry.queue)
            mine, total = set(self._mine(topic)), topics.count(topic)
            others = [partition for partition in range(total) if partition not in mine]
        return topic, others[next(self._turns) % len(others)] if others else next(self._turns) % total

    def _place_of(self, wanted: Talk, topic: str) -> Place:
        fitting = [place for place in wanted.places if place[0] == topic] or wanted.places
        return fitting[next(self._turns) % len(fitting)][:2]

    # ------------------------------------------------------------------------------------------ moving

    def write(self, entries: Sequence[Entry], records: Sequence[Record]) -> None:
        """Write copies and finish what they are copies of; what cannot be written waits here again."""
        failed = self.member.context.publisher.send(records)
        with self.member.lock:
            for at, entry in enumerate(entries):
                if at in failed:
                    self._shelf.back(entry, failed=False)
                else:
                    self._shelf.finish(entry)
        self.member.commit_soon()
        for error in failed.values():
            log.warning("%s: kept here: %s", self.member.context.url, error)
            break
        self._changed()

    def move(self, entries: Sequence[Entry], leaving: Sequence[Place] = ()) -> None:
        """Write these again into partitions that stay; those that are held stay held, under their new place."""
        context = self.member.context
        with self.member.lock:
            stay = [place for place in self._shelf.parts if place not in leaving]
            sources, records = [], []
            for entry in entries:
                places = [p for p in stay if p[0] == entry.topic] or [
                    p for p in stay if (context.topics.names.queue_of(p[0]) or ("", ""))[0] == entry.queue
                ]
                if not places or entry.offset < 0:
                    continue
                held = entry.state != HELD
                claim = os.urandom(12) if not held else b""
                due = time.time() + entry.due - time.monotonic() if entry.due > time.monotonic() else 0.0
                tries = entry.deliveries if not held else self._tries(entry)
                records.append(copy_of(entry, *places[next(self._turns) % len(places)], tries, claim, due))
                sources.append((entry, entry.place, entry.offset, claim))
                if claim:
                    self._shelf.claims[claim] = entry
                else:
                    self._shelf.move(entry)
        claimed = [at for at, source in enumerate(sources) if source[3]]
        found = context.publisher.send_where([records[at] for at in claimed]) if claimed else []
        where = dict(zip(claimed, found, strict=True))
        others = [at for at in range(len(records)) if at not in where]
        failed = context.publisher.send([records[at] for at in others]) if others else {}
        written = {at for number, at in enumerate(others) if number not in failed}
        with self.member.lock:
            for at, (entry, place, offset, claim) in enumerate(sources):
                if not claim:
                    self._shelf.finish(entry) if at in written else self._shelf.back(entry, False, entry.due)
                elif where[at] < 0:
                    self._shelf.claims.pop(claim, None)
                else:
                    self._shelf.finish_at(place, offset)
                    self._shelf.adopt(entry, claim, (records[at].topic, records[at].partition), where[at])

    def _tries(self, entry: Entry) -> int:
        return entry.before + self._shelf.parts[entry.place].ledger.tries(entry.offset)

    def rescue(self, held: list[Entry], leaving: list[Place]) -> None:
        """Partitions are revoked: what is held of them goes into those that stay."""
        with self.member.lock:
            held = [entry for entry in held if entry.state == HELD]
        self.move(held, leaving)

    def _lapse(self) -> None:
        """Holders that let their leases end: to anyone, as one more delivery."""
        with self.member.lock:
            for entry in self._lapsed:
                self._shelf.dirty.add(entry.place)
        if not self.member.commit_now():
            return  # out of the group, or the server is away: whether these are still ours is not known
        with self.member.lock:
            lapsed, self._lapsed = [entry for entry in self._lapsed if entry.state != GONE], []
            here = [entry for entry in lapsed if self.alone(entry.queue) or entry.offset < 0]
            for entry in here:
                self._shelf.back(entry, failed=True)
        away = [entry for entry in lapsed if entry not in here]
        if away:
            self.write(away, [copy_of(entry, *self.elsewhere(entry), entry.deliveries) for entry in away])
        self._changed()

    # ------------------------------------------------------------------------------------------ sharing

    def _unattended(self, now: float) -> bool:
        demand = self.demand
        return demand.room <= 0 or (demand.waiting_since is None and now - demand.last_seen > _UNATTENDED_SECONDS)

    def _offer(self, now: float) -> float:
        """Say that there is more here than is taken; when to say it again."""
        shelf = self._shelf
        if not shelf.ready:
            self._offer_pause = 0.0
            return _TURN_SECONDS
        crowd = [queue for queue in self._queues() if not self.alone(queue)]
        if not crowd or not self._unattended(now):
            return _UNATTENDED_SECONDS
        if self._offer_pause == 0.0 or now >= self._offer_at:
            least, most = _OFFER_SECONDS
            self._offer_pause = min(max(least, self._offer_pause * 2), most)
            self._offer_at = now + self._offer_pause
            for said in list(self._wanted.values()):  # those who asked before there was anything
                self._give(said)
            for queue in crowd if shelf.ready else ():
                self.member.context.bus.say(Talk("have", queue, self._name))
        return self._offer_at - now

    def _ask(self, now: float) -> float:
        """Say that more could be taken, once for each time that there was nothing."""
        since = self.demand.waiting_since
        if since is None or self._shelf.ready:
            self._asked = self._asked and not self._shelf.ready
            return _TURN_SECONDS
        if self._asked:
            return _TURN_SECONDS
        if now - since < _IDLE_SECONDS:
            return since + _IDLE_SECONDS - now
        self._asked = True
        for queue in self._queues():
            self._want(queue)
        return _TURN_SECONDS

    def _want(self, queue: str) -> None:
        topics = self.member.context.topics
        with self.member.lock:
            places = [(*place, 0) for place in self._shelf.parts if place[0] in topics.of_queue(queue)]
        if places and not self.alone(queue):
            self.member.context.bus.say(Talk("want", queue, self._name, self.demand.room, places))

    def _give(self, wanted: Talk) -> None:
        with self.member.lock:
            if self._closing:
                return
            if wanted.queue not in self._queues():
                self._shelf.unpark()
            elif not self._unattended(time.monotonic()):
                return
            entries = self._shelf.surplus(wanted.queue, min(wanted.number, _GIVE_MOST))
            tries = [self._tries(entry) for entry in entries]
        if entries:
            self._wanted.pop(wanted.sender, None)
            # All into one partition: so the most urgent of them is found first.
            place = self._place_of(wanted, self.member.context.topics.names.topic(wanted.queue))
            self.write(entries, [copy_of(e, *place, n) for e, n in zip(entries, tries, strict=True)])

    def _answer(self, said: Talk) -> None:
        if said.kind == "want" and said.places:
            self._wanted[said.sender] = said
            self._wanted_at[said.sender] = time.monotonic()
            self._give(said)
        elif said.kind == "have" and said.queue in self._queues() and self.demand.waiting_since is not None:
            self._want(said.queue)
        elif said.kind == "purge":
            self._purge(said)
        elif said.kind == "removed":
            self.member.drop_topics([topic for topic, _, _ in said.places])
            self.member.context.topics.forget(topic for topic, _, _ in said.places)
        elif said.kind == "topics" and said.queue in self._queues():
            self.member.context.topics.refresh()
            if not self._subscribe():
                self.member.look_for_partitions()

    def _subscribe(self) -> bool:
        """A queue that is left stays until what is held of it is settled: else it would be delivered again."""
        topics = self.member.context.topics
        queues = self._queues()
        with self.member.lock:
            held = self._shelf.queues_held()
        self._leaving = held.difference(queues)
        wanted = [*queues, *self._leaving]
        return self.member.subscribe([topic for queue in wanted for topic in topics.of_queue(queue)])

    def resubscribe(self) -> None:
        """The queues are others now."""
        self._leaving = {""}
        with self.member.lock:
            self._shelf.unpark()
        self._gate.open()

    def _purge(self, said: Talk) -> None:
        with self.member.lock:
            mine = [place for place in said.places if place[:2] in self._shelf.parts]
            dropped = sum(self._shelf.purge((topic, partition), end) for topic, partition, end in mine)
        if mine:
            self.member.commit_now()
            self.member.context.bus.say(Talk("purged", said.queue, said.sender, dropped, mine))

    # ------------------------------------------------------------------------------------------ upkeep

    def _fit(self) -> None:
        """More workers than partitions: make more, where that is allowed, and say so."""
        topics = self.member.context.topics
        for queue in self._queues():
            topic = topics.names.topic(queue)
            have = topics.known(topic)
            some = any(self._mine(each) for each in topics.of_queue(queue))
            if some or not self.member.in_group or not have or topic in self._warned:
                continue
            self._warned.add(topic)
            self._grow(topic, have)

    def _grow(self, topic: str, have: int) -> None:
        context = self.member.context
        most = context.topics.options.most_partitions
        if have >= most:
            log.warning("topic %s has fewer partitions (%d) than workers; max_partitions=%d", topic, have, most)
            return
        try:
            context.topics.grow(topic, min(most, have * 2))
            context.bus.say(Talk("topics", (context.topics.names.queue_of(topic) or ("", ""))[0], self._name))
        except QnbError as error:
            log.warning("topic %s has fewer partitions (%d) than workers; some idle: %s", topic, have, error)

    def _trim(self, now: float) -> None:
        """Let the server delete what is finished."""
        if now < self._trim_at or not self._trims:
            return
        self._trim_at = now + _TRIM_SECONDS
        with self.member.lock:
            ends = {
                p.place: p.ledger.base for p in self._shelf.parts.values() if p.ledger.base - p.cut > _TRIM_MESSAGES
            }
        if ends and self.member.commit_now():
            try:
                self.member.context.topics.cut(ends)
            except QnbError as error:
                self._trims = False
                log.warning("finished messages stay on the server: %s", error)
            with self.member.lock:
                for place, end in ends.items():
                    if place in self._shelf.parts:
                        self._shelf.parts[place].cut = end
