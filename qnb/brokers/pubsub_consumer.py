"""Taking messages from Pub/Sub: pulls that wait at the server, leases that end here to the millisecond."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qnb.brokers import pubsub_types as types
from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.brokers.pubsub_keeper import Keeper
from qnb.brokers.pubsub_link import ACKNOWLEDGE, MODIFY, PASSING, PULL, Gone, Link, Refused
from qnb.brokers.pubsub_shelf import (
    COUNT,
    DEAD,
    DELAY,
    HINT,
    LATER,
    LEVEL,
    LONGEST_DEADLINE,
    MARGIN,
    REASON,
    Shelf,
    message,
    server_deadline,
)
from qnb.brokers.pubsub_types import grpc
from qnb.errors import BrokerError

log = logging.getLogger("qnb")

# So many ids fit into one request.
ACK_IDS = 1_000
# One pull takes no more.
PULL_MESSAGES = 1_000
# How long a pull waits at the server. It cannot be called back without risk: what the server is sending in that
# moment would lie until its deadline ends. The emulator sends for longer, so there pulls are short.
PULL_SECONDS, EMULATOR_PULL_SECONDS = 20.0, 0.5
# The server ends a pull that found nothing this long before its deadline.
PULL_MARGIN = 1.0
# A look without a wait: how long its answer may take.
LOOK_SECONDS = 0.1
QUICK_SECONDS = 1.0
# How long what came too late for a receive may lie here for the next one.
LINGER_SECONDS = 0.1
SEND_SECONDS = 5.0
# Leases beyond the server's longest deadline are renewed this long before it ends.
RENEW_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class Source:
    """A subscription of a queue. `deadline` is what it gives by itself; None when not known."""

    queue: str
    level: int
    name: str
    deadline: int | None
    waiting: Any = None
    quick: Any = None
    retry_at: float = 0.0
    gone: bool = False
    dropped: bool = False


@dataclass(eq=False, slots=True)
class Held:
    """The token of a delivery. `until` is when the lease ends, by this process's monotonic clock."""

    source: Source
    ack_id: str
    delivery: Delivery | None = None  # while it is alive
    until: float = 0.0
    alive: bool = False
    renew_at: float = 0.0


class PubsubConsumer:
    """See Consumer of the ports.

    A pull waits at the server for each subscription while somebody waits here; what comes in when nobody does is
    given back after a moment. The server's deadline, in whole seconds, is for the death of this process; the keeper's
    thread gives back what its holder let lapse.
    """

    def __init__(self, shelf: Shelf, keeper: Keeper, queues: Sequence[str], prefetch: int) -> None:
        self.lease = shelf.options.lease or DEFAULT_LEASE
        self._shelf, self._keeper, self._prefetch = shelf, keeper, max(1, prefetch)
        self._link: Link = shelf.link
        self._pull_seconds = EMULATOR_PULL_SECONDS if shelf.link.target.emulated else PULL_SECONDS
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._events = 0
        self._sources: list[Source] = []  # the highest level first
        self._queues: list[str] = []
        self._buffer: dict[int, deque[Delivery]] = {}
        self._unsettled = 0
        self._ends: list[tuple[float, int, list[Held]]] = []
        self._in_ends = 0
        self._numbers = itertools.count()
        self._woken = self._closed = self._active = self._quiet = False
        self._idle_since = 0.0
        self._down_since: float | None = None
        self._pause = 0.0
        self._error: Exception | None = None
        self.take_from(queues)

    # Queues ----------------------------------------------------------------------------------------------------

    def take_from(self, queues: Sequence[str]) -> None:
        queues = list(dict.fromkeys(queues))
        there = self._shelf.look()
        for queue in queues:
            self._shelf.make(queue)
        if queues:
            self.lease = min(self._shelf.lease_of(queue) for queue in queues)
        with self._changed:
            back = [d for items in self._buffer.values() for d in items if d.queue not in queues]
            for level, items in self._buffer.items():
                self._buffer[level] = deque(d for d in items if d.queue in queues)
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
        if part and not part.isdigit():
            return
        level = int(part or 0)
        with self._changed:
            if any(source.queue == queue and source.level == level for source in self._sources):
                return
            source = Source(queue, level, self._shelf.name(queue, level), self._shelf.deadline_of(queue))
            self._sources.append(source)
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
                while True:
                    got = self._turn(limit, end)
                    if got is not None:
                        return got
            finally:
                self._idle_since = time.monotonic()
                self._active = False
                if self._buffer_size():
                    self._keeper.ring(self._idle_since + LINGER_SECONDS)

    def _turn(self, limit: int, end: float) -> list[Delivery] | None:
        """What there is; None when it is worth another turn."""
        with self._changed:
            seen = self._events
            room = min(limit, self._prefetch - self._unsettled)
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
            if room > 0:
                self._ask(room, now)
            retry = min((s.retry_at for s in self._sources if s.retry_at > now), default=end) if room > 0 else end
            while self._events == seen and (now := time.monotonic()) < min(end, retry):
                self._changed.wait(min(end, retry) - now)
        return None

    def _highest(self, room: int) -> list[Delivery]:
        """Of the highest level that has something."""
        levels = sorted({source.level for source in self._sources}, reverse=True)
        if len(levels) > 1:
            for level in levels:
                if not self._buffer.get(level) and not self._quiet and level != levels[-1]:
                    self._look(level, room)
                if self._buffer.get(level):
                    break
                if level == levels[-1] and not self._quiet:
                    self._look(level, room)
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
                    self._pull(source, room, QUICK_SECONDS, quick=True)
            while any(s.quick is not None for s in sources) and (now := time.monotonic()) < end and not self._closed:
                self._changed.wait(end - now)

    def _ask(self, room: int, now: float) -> None:
        """Have a pull wait at every subscription. They share the room."""
        idle = [s for s in self._sources if s.waiting is None and not s.gone and s.retry_at <= now]
        for source in idle:
            self._pull(source, max(1, room // len(self._sources)), self._pull_seconds + PULL_MARGIN, quick=False)

    def _pull(self, source: Source, room: int, seconds: float, *, quick: bool) -> None:
        request = types.PullRequest(
            subscription=self._link.subscription(source.name),
            max_messages=min(room, PULL_MESSAGES),
            return_immediately=quick,
        )
        future = self._link.start(PULL, request, seconds)
        if quick:
            source.quick = future
        else:
            source.waiting = future
        self._keeper.pending(future)
        future.add_done_callback(lambda done: self._arrived(source, done, quick=quick))

    def _arrived(self, source: Source, future: Any, *, quick: bool) -> None:
        """A pull is over; on a thread of grpc."""
        got: list[Delivery] = []
        hints: list[str] = []
        trouble: Any = None
        try:
            got = self._unpack(source, future.result().received_messages, hints)
        except grpc.RpcError as error:
            trouble = error
        except grpc.FutureCancelledError:
            pass
        wanted = server_deadline(self.lease)
        modified = None
        if got and wanted != source.deadline:
            # First, for the server must not wait longer for a holder that dies. Should it fail, it does.
            modified = self._send(MODIFY, source, [d.token.ack_id for d in got], wanted)
        if modified is not None:
            modified.add_done_callback(lambda _: self._accept(source, got, trouble, quick=quick))
        else:
            self._accept(source, got, trouble, quick=quick)
        for part in hints:
            self.learn(source.queue, part)

    def _accept(self, source: Source, got: list[Delivery], trouble: Any, *, quick: bool) -> None:
        """What a pull brought is to be handed out; on a thread of grpc."""
        with self._changed:
            if quick:
                source.quick = None
            else:
                source.waiting = None
            if trouble is not None:
                self._trouble(source, trouble)
            else:
                self._down_since, self._pause, source.retry_at = None, 0.0, 0.0
            over = self._closed or source.dropped
            if got and not over:
                self._buffer.setdefault(source.level, deque()).extend(got)
                if not self._active:
                    self._keeper.ring(time.monotonic() + LINGER_SECONDS)
            self._notify()
        if got and over:
            self._keeper.soon(lambda: self._give_back(got))

    def _unpack(self, source: Source, received: Iterable[Any], hints: list[str]) -> list[Delivery]:
        got: list[Delivery] = []
        done: list[str] = []
        for each in received:
            data = each.message
            before = 0
            if data.attributes:
                if HINT in data.attributes:
                    hints.append(data.attributes[HINT])
                    done.append(each.ack_id)
                    continue
                before = _number(data.attributes.get(COUNT, "0"))
            count = before + max(1, each.delivery_attempt)
            got.append(Delivery(source.queue, data.data, count, Held(source, each.ack_id)))
        if done:
            self._send(ACKNOWLEDGE, source, done)
        return got

    def _send(self, method: Any, source: Source, ids: list[str], seconds: int = 0) -> Any:
        """One try, without a wait for the answer: a future; None when the broker was closed in this moment."""
        try:
            return self._link.start(method, self._request(method, source, ids, seconds), SEND_SECONDS)
        except BrokerError:
            return None

    def _request(self, method: Any, source: Source, ids: list[str], seconds: int = 0) -> Any:
        name = self._link.subscription(source.name)
        if method is ACKNOWLEDGE:
            return types.AcknowledgeRequest(subscription=name, ack_ids=ids)
        return types.ModifyAckDeadlineRequest(subscription=name, ack_ids=ids, ack_deadline_seconds=seconds)

    def _trouble(self, source: Source, error: Any) -> None:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            source.gone = True
        elif code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            pass  # it found nothing
        elif code in PASSING:
            now = time.monotonic()
            self._down_since = self._down_since or now
            self._pause = min(max(0.05, self._pause * 2), 1.0)
            source.retry_at = now + self._pause
            if now - self._down_since > self._link.patience:
                self._down_since = None
                self._error = self._translated(error, source)
        else:
            source.retry_at = time.monotonic() + 1.0
            self._error = self._translated(error, source)

    def _translated(self, error: Any, source: Source) -> Exception:
        request = types.PullRequest(subscription=self._link.subscription(source.name))
        translated = self._link.translate(error, PULL, request)
        translated.__cause__ = error
        return translated

    def _mend(self) -> None:
        """See to subscriptions that were found to be gone: a queue is made anew, its levels are not."""
        for source in [source for source in self._sources if source.gone]:
            self._shelf.forget(source.name)
            if source.level:
                with self._changed:
                    self._sources.remove(source)
                continue
            if not self._shelf.options.create:
                raise self._shelf.to_be_made(source.name, f"the subscription {source.name} is not there")
            self._shelf.make(source.queue)
            source.gone = False

    def _hand_out(self, room: int) -> list[Delivery]:
        got: list[Delivery] = []
        with self._changed:
            if self._closed:
                return got
            for level in sorted(self._buffer, reverse=True):
                items = self._buffer[level]
                while items and len(got) < room:
                    got.append(items.popleft())
            for delivery in got:
                delivery.token.delivery = delivery
            self._unsettled += len(got)
            self._hold([delivery.token for delivery in got], self.lease)
        return got

    def _hold(self, held: list[Held], seconds: float) -> None:
        """Begin, or change, leases. Under the lock."""
        if not held:
            return
        now = time.monotonic()
        until = now + seconds
        renew = now + LONGEST_DEADLINE - RENEW_SECONDS if seconds + MARGIN > LONGEST_DEADLINE else 0.0
        for each in held:
            each.until, each.alive, each.renew_at = until, True, renew
        at = renew or until
        heapq.heappush(self._ends, (at, next(self._numbers), held))
        self._in_ends += len(held)
        if self._in_ends > 10_000 + 4 * self._unsettled:  # mostly settled ones, under long leases
            self._ends = [(at, n, left) for at, n, batch in self._ends if (left := [h for h in batch if h.alive])]
            heapq.heapify(self._ends)
            self._in_ends = sum(len(batch) for _, _, batch in self._ends)
        self._keeper.ring(at)

    def _buffer_size(self) -> int:
        return sum(map(len, self._buffer.values()))

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
        lapsed: list[Held] = []
        renewed: list[Held] = []
        back: list[Delivery] = []
        with self._changed:
            while self._ends and self._ends[0][0] <= now:
                _, _, batch = heapq.heappop(self._ends)
                self._in_ends -= len(batch)
                for held in batch:
                    if held.alive and held.until <= now:
                        held.alive, held.delivery = False, None
                        lapsed.append(held)
                    elif held.alive and held.renew_at and held.renew_at <= now:
                        renewed.append(held)
            for until in {held.until for held in renewed}:
                self._hold([held for held in renewed if held.until == until], until - now)
            self._unsettled -= len(lapsed)
            if lapsed:
                self._notify()
            if not self._active and now - self._idle_since >= LINGER_SECONDS:
                back = self._empty_buffer()
            at = self._ends[0][0] if self._ends else now + 60.0
            if self._buffer_size():
                at = min(at, self._idle_since + LINGER_SECONDS) if not self._active else now + LINGER_SECONDS
        self._modify(lapsed, 0)
        self._modify(renewed, LONGEST_DEADLINE)
        self._give_back(back)
        return at

    def _empty_buffer(self) -> list[Delivery]:
        back = [delivery for items in self._buffer.values() for delivery in items]
        self._buffer.clear()
        return back

    # Settling --------------------------------------------------------------------------------------------------

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        self._acknowledge([delivery.token for delivery in self._mine(deliveries)])

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        self._give_back(self._mine(deliveries), delay)

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        mine = self._mine(deliveries)
        for queue in dict.fromkeys(delivery.queue for delivery in mine):
            bodies = [message(d.body, {REASON: reason}) for d in mine if d.queue == queue]
            self._shelf.put(queue, DEAD, bodies)
        self._acknowledge([delivery.token for delivery in mine])

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        now = time.monotonic()
        with self._changed:
            held = [d.token for d in deliveries if d.token.alive and d.token.until > now]
            self._hold(held, seconds)
        self._modify(held, server_deadline(seconds))

    def _mine(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those whose leases are not over; they no longer count as unsettled."""
        now = time.monotonic()
        with self._changed:
            mine = [d for d in deliveries if d.token.alive and d.token.until > now]
            for delivery in mine:
                delivery.token.alive, delivery.token.delivery = False, None
            self._unsettled -= len(mine)
            if mine:
                self._notify()
        return mine

    def _give_back(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """Published anew, since the server would count a deadline set to 0 as one more delivery."""
        groups: dict[tuple[str, str | int], list[Any]] = {}
        for delivery in deliveries:
            attributes = {COUNT: str(delivery.deliveries - 1)} if delivery.deliveries > 1 else {}
            part: str | int = delivery.token.source.level
            if delay > 0:
                attributes |= {DELAY: str(delay), LEVEL: str(part)}
                part = LATER
            groups.setdefault((delivery.queue, part), []).append(message(delivery.body, attributes))
        for (queue, part), messages in groups.items():
            self._shelf.put(queue, part, messages)
            if part == LATER:
                self._keeper.has_later(queue)
        self._acknowledge([delivery.token for delivery in deliveries])

    def _acknowledge(self, held: Sequence[Held]) -> None:
        self._each(ACKNOWLEDGE, held)

    def _modify(self, held: Sequence[Held], seconds: int) -> None:
        self._each(MODIFY, held, seconds)

    def _each(self, method: Any, held: Sequence[Held], seconds: int = 0) -> None:
        by_source: dict[Source, list[str]] = {}
        for each in held:
            by_source.setdefault(each.source, []).append(each.ack_id)
        for source, ids in by_source.items():
            for start in range(0, len(ids), ACK_IDS):
                request = self._request(method, source, ids[start : start + ACK_IDS], seconds)
                try:
                    self._link.call(method, request)
                except Gone:
                    pass  # the queue was removed with all that was in it
                except Refused as error:  # exactly once: some of these leases were over on the server
                    log.debug("%s", error)

    # -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            back = [held.delivery for _, _, batch in self._ends for held in batch if held.alive and held.delivery]
            back = list({id(delivery): delivery for delivery in back}.values())
            for delivery in back:
                delivery.token.alive, delivery.token.delivery = False, None
            self._unsettled = 0
            self._ends.clear()
            back += self._empty_buffer()
            self._notify()
        self._keeper.remove(self)
        try:
            self._give_back(back)
        except BrokerError as error:  # the server is away; its deadlines give them back
            log.debug("%s", error)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
