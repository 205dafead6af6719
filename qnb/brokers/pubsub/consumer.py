"""Taking messages from Pub/Sub: pulls that wait at the server, leases that end here to the millisecond."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.keeper import DOUBT_SECONDS, Keeper
from qnb.brokers.pubsub.leases import Leases
from qnb.brokers.pubsub.link import PASSING, PULL, Gone
from qnb.brokers.pubsub.pulls import QUICK_SECONDS, Catch, Puller, Source
from qnb.brokers.pubsub.shelf import (
    COUNT,
    DEAD,
    DELAY,
    LATER,
    LEVEL,
    LONGEST_DEADLINE,
    REASON,
    Shelf,
    message,
    server_deadline,
)
from qnb.brokers.pubsub.types import grpc
from qnb.errors import BrokerError

log = logging.getLogger("qnb")

# A receive without a wait: how long the server's answer may take.
LOOK_SECONDS = 0.1
# How long what came too late for one receive may lie here for the next.
LINGER_SECONDS = 0.1
# Pauses after a failed pull.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class PubsubConsumer:
    """See Consumer of the ports.

    A pull waits at the server for each subscription while somebody waits here; what comes in when nobody does is
    given back after a moment. The server's deadline, in whole seconds, is for the death of this process; the keeper's
    thread gives back what its holder let lapse.
    """

    def __init__(self, shelf: Shelf, keeper: Keeper, queues: Sequence[str], prefetch: int) -> None:
        self.lease = shelf.options.lease or DEFAULT_LEASE
        self._shelf, self._keeper, self._prefetch = shelf, keeper, max(1, prefetch)
        self._puller = Puller(shelf.link, keeper, self._accept)
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._events = 0
        self._sources: list[Source] = []  # the highest level first
        self._queues: list[str] = []
        self._buffer: dict[int, deque[Delivery]] = {}
        self._leases = Leases()
        self._woken = self._closed = self._active = self._quiet = False
        self._idle_since = 0.0
        self._down_since: float | None = None
        self._pause = FIRST_PAUSE
        self._error: Exception | None = None
        self.take_from(queues)

    # Queues ----------------------------------------------------------------------------------------------------

    def take_from(self, queues: Sequence[str]) -> None:
        queues = list(dict.fromkeys(queues))
        there = self._shelf.look()
        for queue in queues:
            self._shelf.make(queue)
        with self._changed:
            if queues:
                self.lease = min(self._shelf.lease_of(queue) for queue in queues)
            self._puller.deadline = server_deadline(self.lease)
            back = self._empty_buffer(keep=queues)
            for source in self._sources:
                source.dropped = source.queue not in queues
            self._sources = [source for source in self._sources if not source.dropped]
            self._queues = queues
        for queue in queues:
            self.learn(queue, "")
        for name in there:
            self.learn(*(self._shelf.take_apart(name) or ("", "")))
        self._keeper.serve(self, queues)
        self._give_back(back)
        self._notify()

    def learn(self, queue: str, part: str) -> None:
        """There is such a part of the queue: a level, or delayed messages."""
        if queue not in self._queues or part == DEAD:
            return
        if part == LATER:
            self._keeper.has_later(queue)
            return
        if part and not part.isdecimal():
            return
        level = int(part or 0)
        with self._changed:
            if queue not in self._queues or any(s.queue == queue and s.level == level for s in self._sources):
                return
            self._sources.append(Source(queue, level, self._shelf.name(queue, level), self._shelf.deadline_of(queue)))
            # Stable: among equal levels the order of the queues.
            self._sources.sort(key=lambda each: (-each.level, self._queues.index(each.queue)))
            self._quiet = False
            self._notify()

    # Receiving -------------------------------------------------------------------------------------------------

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        with self._receiving:
            end = time.monotonic() + max(timeout, LOOK_SECONDS)
            self._active = True
            try:
                while (got := self._turn(limit, end)) is None:
                    pass
                return got
            finally:
                self._idle_since = time.monotonic()
                self._active = False
                if self._buffer:
                    self._keeper.ring(self._idle_since + LINGER_SECONDS)

    def _turn(self, limit: int, end: float) -> list[Delivery] | None:
        """What there is; None when it is worth another turn."""
        with self._changed:
            seen = self._events
            room = min(limit, self._prefetch - self._leases.unsettled)
            if self._error is not None and not self._closed:
                error, self._error = self._error, None
                raise error
        if room > 0 and not self._closed:
            self._mend()
            got = self._highest(room)
            if got:
                return got
        with self._changed:
            now = time.monotonic()
            if self._closed or self._woken or now >= end:
                self._woken = False
                return []
            until = end
            if room > 0:
                self._ask(room, now)
                until = min([end, *(source.retry_at for source in self._sources if source.retry_at > now)])
            while self._events == seen and (now := time.monotonic()) < until:
                self._changed.wait(until - now)
        return None

    def _highest(self, room: int) -> list[Delivery]:
        """Of the highest level that has something, as far as can be told without a wait."""
        levels = sorted({source.level for source in self._sources}, reverse=True)
        if len(levels) > 1 and not self._quiet:
            for level in levels:
                if not self._buffer.get(level):
                    if level == levels[-1] and self._buffer:
                        break
                    self._look(level, room)
                if self._buffer.get(level):
                    break
            else:
                self._quiet = True
        got = self._hand_out(room)
        if got:
            self._quiet = False
        return got

    def _look(self, level: int, room: int) -> None:
        """Ask the subscriptions of one level for what is there now."""
        end = time.monotonic() + QUICK_SECONDS
        with self._changed:
            sources = [s for s in self._sources if s.level == level and not s.gone and s.retry_at <= time.monotonic()]
            for source in sources:
                if source.quick is None:
                    self._puller.pull(source, room, quick=True)
            while any(s.quick is not None for s in sources) and (now := time.monotonic()) < end and not self._closed:
                self._changed.wait(end - now)

    def _ask(self, room: int, now: float) -> None:
        """Have a pull wait at every subscription. They share the room."""
        for source in self._sources:
            if source.waiting is None and not source.gone and source.retry_at <= now:
                self._puller.pull(source, max(1, room // len(self._sources)), quick=False)

    def _hand_out(self, room: int) -> list[Delivery]:
        got: list[Delivery] = []
        with self._changed:
            if self._closed:
                return got
            for level in sorted(self._buffer, reverse=True):
                items = self._buffer[level]
                while items and len(got) < room:
                    got.append(items.popleft())
                if not items:
                    del self._buffer[level]
            if got:
                self._keeper.ring(self._leases.give(got, time.monotonic(), self.lease))
        return got

    def _accept(self, source: Source, catch: Catch) -> None:
        """What a pull brought; on a thread of grpc."""
        got = catch.deliveries
        with self._changed:
            if catch.quick:
                source.quick = None
            else:
                source.waiting = None
            if catch.trouble is not None:
                self._trouble(source, catch.trouble)
            else:
                self._down_since, self._pause, source.retry_at = None, FIRST_PAUSE, 0.0
            if catch.doubtful:  # each time that it is sent in vain counts as a delivery
                source.retry_at = time.monotonic() + DOUBT_SECONDS
            over = self._closed or source.dropped
            if got and not over:
                self._buffer.setdefault(source.level, deque()).extend(got)
                if not self._active:
                    self._keeper.ring(time.monotonic() + LINGER_SECONDS)
            self._notify()
        if got and over:
            self._keeper.soon(lambda: self._give_back(got))
        for part in catch.hints:
            self.learn(source.queue, part)

    def _trouble(self, source: Source, error: Any) -> None:
        """A pull failed. Under the lock."""
        code, now = error.code(), time.monotonic()
        if code is grpc.StatusCode.NOT_FOUND:
            source.gone = True
        elif code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return  # it found nothing
        elif code in PASSING:
            self._down_since = self._down_since or now
            source.retry_at = now + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            if now - self._down_since > self._shelf.link.patience:
                self._down_since = None
                self._error = self._translated(error, source)
        else:
            source.retry_at = now + LONGEST_PAUSE
            self._error = self._translated(error, source)

    def _translated(self, error: Any, source: Source) -> Exception:
        request = types.PullRequest(subscription=self._shelf.link.subscription(source.name))
        translated = self._shelf.link.translate(error, PULL, request)
        translated.__cause__ = error
        return translated

    def _mend(self) -> None:
        """See to subscriptions that were found to be gone: a queue is made anew, its levels are not."""
        for source in [source for source in self._sources if source.gone]:
            self._shelf.forget(source.name)
            if source.level:
                with self._changed:
                    self._sources.remove(source)
            elif not self._shelf.options.create:
                raise self._shelf.to_be_made(source.name, f"the subscription {source.name} is not there")
            else:
                self._shelf.make(source.queue)
                source.gone = False

    def _empty_buffer(self, keep: Sequence[str] = ()) -> list[Delivery]:
        """What was not handed out, but for that of some queues. Under the lock."""
        everything = [(level, delivery) for level, items in self._buffer.items() for delivery in items]
        self._buffer.clear()
        for level, delivery in everything:
            if delivery.queue in keep:
                self._buffer.setdefault(level, deque()).append(delivery)
        return [delivery for _, delivery in everything if delivery.queue not in keep]

    def _notify(self) -> None:
        with self._changed:
            self._events += 1
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._notify()

    # For the keeper's thread -----------------------------------------------------------------------------------

    def tend(self, now: float) -> float:
        """Give back what lapsed, and what nobody fetched; renew long leases. When to come again."""
        back: list[Delivery] = []
        with self._changed:
            lapsed, renewed, at = self._leases.due(now)
            if lapsed:
                self._notify()
            if not self._active and now - self._idle_since >= LINGER_SECONDS:
                back = self._empty_buffer()
            if self._buffer:
                at = min(at, now + LINGER_SECONDS)
        self._puller.modify(lapsed, 0)
        self._puller.modify(renewed, LONGEST_DEADLINE)
        self._give_back(back)
        return at

    # Settling --------------------------------------------------------------------------------------------------

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        self._puller.acknowledge([delivery.token for delivery in self._mine(deliveries)])

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        self._give_back(self._mine(deliveries), delay)

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        mine = self._mine(deliveries)
        for queue in dict.fromkeys(delivery.queue for delivery in mine):
            dead = [message(delivery.body, {REASON: reason}) for delivery in mine if delivery.queue == queue]
            self._shelf.put(queue, DEAD, dead)
        self._puller.acknowledge([delivery.token for delivery in mine])

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        with self._changed:
            held, at = self._leases.change(deliveries, time.monotonic(), seconds)
        self._puller.modify(held, server_deadline(seconds))
        self._keeper.ring(at)

    def _mine(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those whose leases are not over; they no longer count as unsettled."""
        with self._changed:
            mine = self._leases.take(deliveries, time.monotonic())
            if mine:
                self._notify()
        return mine

    def _give_back(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """Published anew, since the server would count a deadline set to 0 as one more delivery."""
        groups: dict[tuple[str, int], list[Delivery]] = {}
        for delivery in deliveries:
            groups.setdefault((delivery.queue, delivery.token.source.level), []).append(delivery)
        for (queue, level), back in groups.items():
            messages = [_again(delivery, delay) for delivery in back]
            try:
                if delay > 0:
                    self._shelf.put(queue, LATER, messages)
                else:
                    self._shelf.put_back(queue, level, messages)
            except Gone as error:
                log.debug("what came from a queue that was removed does not go back: %s", error)
                continue
            self._puller.acknowledge([delivery.token for delivery in back])

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            back = self._leases.take_all() + self._empty_buffer()
            self._notify()
        self._keeper.remove(self)
        try:
            self._give_back(back)
        except BrokerError as error:  # the server is away; its deadlines give them back
            log.debug("%s", error)


def _again(delivery: Delivery, delay: float) -> Any:
    """The message, to be published anew; its count goes on from where it was before this delivery."""
    attributes = {COUNT: str(delivery.deliveries - 1)} if delivery.deliveries > 1 else {}
    if delay > 0:
        attributes |= {DELAY: str(delay), LEVEL: str(delivery.token.source.level)}
    return message(delivery.body, attributes)
