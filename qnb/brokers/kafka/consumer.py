"""Taking messages of queues as a member of the group of workers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from confluent_kafka import KafkaError

from qnb.brokers.base import Delivery
from qnb.brokers.kafka.client import translate
from qnb.brokers.kafka.context import Context
from qnb.brokers.kafka.keeper import Keeper
from qnb.brokers.kafka.member import Member
from qnb.brokers.kafka.records import REASON, Entry, Record, copy_of, key_of
from qnb.brokers.kafka.shelf import DONE, GONE, HELD, Shelf
from qnb.brokers.memory.bus import Gate
from qnb.errors import BrokerError

_SAFE_SECONDS = 0.1


class KafkaConsumer:
    """See Consumer of the ports. It joins the group when it first receives."""

    def __init__(self, context: Context, queues: Sequence[str], prefetch: int, lease: float) -> None:
        self.lease = lease
        self.closed = False
        self._context = context
        self._queues = list(dict.fromkeys(queues))
        self._prefetch = max(1, prefetch)
        self._gate = Gate()
        self._woken = False
        self._starting = threading.Lock()
        self._shelf = Shelf()
        self._keeper = Keeper(self._shelf, os.urandom(8).hex(), lambda: self._queues, self._gate.open)
        self._member = Member(context, self._shelf, lease, self._changed, self._keeper.rescue)
        self._member.arrived = self._reserve
        self._limit = 0  # of a receive that waits
        self._reserved: list[Entry] = []

    def _changed(self) -> None:
        self._gate.open()
        self._keeper.ring()

    def _start(self) -> None:
        with self._starting:
            if self._member.started or self.closed:
                return
            topics = self._context.topics
            topics.ensure(topics.names.topic(queue) for queue in self._queues)
            self._context.bus.listen(self._keeper.hear)
            topics.refresh()
            mine = [topic for queue in self._queues for topic in topics.of_queue(queue)]
            self._member.start(mine, topics.names.group(next(iter(self._queues), "")))
            self._keeper.start(self._member)

    def take_from(self, queues: Sequence[str]) -> None:
        """Take from these queues from now on; what was handed out of the others is still settled."""
        self._queues = list(dict.fromkeys(queues))
        if self._member.started:
            topics = self._context.topics
            topics.ensure(topics.names.topic(queue) for queue in self._queues)
            topics.refresh()
            self._keeper.resubscribe()
        self._changed()

    # ------------------------------------------------------------------------------------------ receiving

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        if not self._member.started:
            self._start()
        demand = self._keeper.demand
        try:
            while True:
                taken, wait = self._look(limit, end)
                if taken:
                    self._member.commit_soon()
                    self._keeper.ring()
                    self._member.wait_until_safe(_SAFE_SECONDS)
                    return taken
                if wait <= 0:
                    return []
                self._gate.wait(wait)
        finally:
            self._limit = 0
            demand.waiting_since = None
            demand.last_seen = time.monotonic()

    def _look(self, limit: int, end: float) -> tuple[list[Delivery], float]:
        """Deliveries, or how long to wait for some; 0 when no longer."""
        shelf, demand = self._shelf, self._keeper.demand
        if self._member.error is not None:
            self._complain()
        with self._member.lock:
            now = time.monotonic()
            due = shelf.promote(now)
            opens = shelf.opens_at(now)
            taken, self._reserved = self._reserved, []
            taken = [entry for entry in taken if entry.state == HELD] or self._take(limit, now)
            demand.room = room = self._prefetch - shelf.held
            self._limit = 0 if taken else limit
        if taken:
            return [Delivery(e.queue, e.body, e.deliveries, (e, e.turn)) for e in taken], 0.0
        if self._woken or self.closed or now >= end:
            self._woken = False
            return [], 0.0
        if room > 0 and demand.waiting_since is None:
            demand.waiting_since = now
            self._keeper.ring()
        return [], max(0.0005, min(at for at in (end, due, opens) if at is not None) - now)

    def _take(self, limit: int, now: float) -> list[Entry]:
        """Under the lock."""
        room = min(limit, self._prefetch - self._shelf.held)
        if room <= 0 or self.closed or self._shelf.opens_at(now) is not None:
            return []
        taken = self._shelf.take(room, now, self.lease, self._queues)
        self._member.handed_out += bool(taken)
        return taken

    def _reserve(self) -> None:
        """For a receive that waits, in the polling thread: the claim is on its way before anyone has the message."""
        with self._member.lock:
            if self._limit > 0 and not self._reserved:
                self._reserved = self._take(self._limit, time.monotonic())

    def _complain(self) -> None:
        error, self._member.error = self._member.error, None
        if error is not None:
            if error.code() == KafkaError.INVALID_SESSION_TIMEOUT:
                raise BrokerError(
                    f"{self._context.url}: a session of {self.lease:.3g} s is outside of what the server takes: "
                    "change lease in the URL, or group.min.session.timeout.ms of the server"
                )
            raise translate(error, self._context.url, f"take from {', '.join(self._queues)}")

    # ------------------------------------------------------------------------------------------ settling

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        with self._member.lock:
            for entry in self._shelf.mine((each.token for each in deliveries), time.monotonic()):
                self._shelf.finish(entry)
        self._settled()

    def _settled(self) -> None:
        self._member.commit_soon()
        self._gate.open()  # there may be room now

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        if not deliveries or not self._member.started:
            return
        with self._member.lock:
            mine = self._shelf.mine((each.token for each in deliveries), time.monotonic())
            for entry in mine:
                self._shelf.move(entry)
            here = [] if delay > 0 else [e for e in mine if self._keeper.alone(e.queue) and self._has_place(e)]
            for entry in here:
                self._shelf.back(entry, failed=False)
        away = [entry for entry in mine if entry not in here]
        if away:
            due = time.time() + delay if delay > 0 else 0.0
            self._keeper.write(away, [self._copy(entry, due) for entry in away])
        self._settled()
        self._keeper.ring()

    @staticmethod
    def _has_place(entry: Entry) -> bool:
        """Whether its ledger can count one delivery less; that of a copy cannot."""
        return entry.offset >= 0 and not entry.linked

    def _copy(self, entry: Entry, due: float) -> Record:
        if not due:
            return copy_of(entry, *self._keeper.elsewhere(entry), entry.deliveries - 1)
        later = self._context.topics.names.later(entry.queue)
        partition = self._context.publisher.next_partition(later)
        return copy_of(entry, later, partition, entry.deliveries - 1, due=due)

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        if not deliveries or not self._member.started:
            return
        with self._member.lock:
            mine = self._shelf.mine((each.token for each in deliveries), time.monotonic())
            for entry in mine:
                self._shelf.move(entry)
        if mine:
            first = self._context.publisher.stamp(len(mine))
            dead = [self._dead(entry, key_of(first + at), reason) for at, entry in enumerate(mine)]
            self._keeper.write(mine, dead)
        self._settled()

    def _dead(self, entry: Entry, key: bytes, reason: str) -> Record:
        topic = self._context.topics.names.dead(entry.queue)
        self._context.topics.ensure([topic])
        return Record(topic, 0, entry.body, key, [(REASON, reason.encode())])

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        with self._member.lock:
            now = time.monotonic()
            for entry in self._shelf.mine((each.token for each in deliveries), now):
                self._shelf.extend(entry, now + seconds)
        if deliveries:
            self._keeper.ring()

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        with self._starting:
            if self.closed:
                return
            self.closed = True
        self._gate.open()
        if not self._member.started:
            return
        self._context.bus.unlisten(self._keeper.hear)
        self._keeper.close()
        with self._member.lock:
            held = [e for e in self._shelf.all_held() if e.state == HELD]
            here = [entry for entry in held if self._has_place(entry)]
            for entry in here:
                self._shelf.back(entry, failed=False)
            away = [entry for entry in held if entry not in here]
            for entry in away:
                self._shelf.move(entry)
        if away:  # copies of what was moved here, which have no place to wait in
            self._keeper.write(away, [self._copy(entry, 0.0) for entry in away if entry.state not in (DONE, GONE)])
        self._member.close()
