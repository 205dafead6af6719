"""Takes messages of SQS on leases, from one queue or several, each with the levels that are in use.

Nothing is read ahead beyond what receive_many asked for. What a poll brings too late is handed out by the next
receive_many; when none comes for a moment, it goes back to the queue, uncounted.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.brokers.memory.bus import Gate
from qnb.brokers.sqs.client import Client, QueueGone
from qnb.brokers.sqs.polls import Polls, Source
from qnb.brokers.sqs.queues import Queues
from qnb.brokers.sqs.settle import Held, Settler
from qnb.brokers.sqs.sources import Sources
from qnb.errors import QnbError

log = logging.getLogger("qnb")

# How long something may lie here while nobody receives.
GRACE_SECONDS = 0.3
# A message that is due sooner is kept here until then; SQS delays by whole seconds.
_SOON_SECONDS = 1.5
_HOUR = 3600.0


class SqsConsumer:
    """See Consumer of the ports."""

    def __init__(self, client: Client, queues: Queues, names: Sequence[str], prefetch: int) -> None:
        self._client, self._queues = client, queues
        self._prefetch = max(1, prefetch)
        self._settler = Settler(client, queues)
        self._polls = Polls(client, self._arrived, self._failed)
        self._lock = threading.RLock()
        self._gate = Gate()
        self._sources = Sources(queues, names)
        self._ready: list[Held] = []
        self._later: list[tuple[float, Held]] = []  # Unix time
        self._held: dict[int, Held] = {}
        self._order = 0
        self._error: QnbError | None = None
        self._woken = self._closed = False
        self._receiving = 0
        self._idle_since = 0.0
        self._keeper: threading.Thread | None = None
        self._keep = Gate()

    @property
    def lease(self) -> float:
        """Seconds."""
        asked = self._client.options.lease
        return asked or min((self._queues.lease(name) for name in self._sources.names), default=DEFAULT_LEASE)

    @property
    def _hide(self) -> int:
        """What SQS is told: whole seconds, and one more for the way."""
        return min(math.ceil(self.lease) + 1, 12 * 3600)

    # Receive ---------------------------------------------------------------------------------------------------

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        looked = False
        with self._lock:
            self._receiving += 1
        try:
            while True:
                self._sources.refresh()
                if not looked or (self._ready and self._sources.several):
                    self._look(limit, now=timeout <= 0)
                    looked = True
                if self._sources.news():  # a level that has to be looked at first
                    looked = False
                    continue
                taken = self._take(limit)
                if taken or self._woken or self._closed or time.monotonic() >= end:
                    self._woken = False
                    if taken:
                        self._ask(limit - len(taken), more=True)
                    return taken
                self._raise()
                self._ask(limit)
                self._gate.wait(min(end, self._next()) - time.monotonic())
        finally:
            with self._lock:
                self._receiving -= 1
                self._idle_since = time.monotonic()
            if self._ready or self._later:
                self._watch()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _room(self) -> int:
        return self._prefetch - len(self._held) - len(self._ready)

    def _look(self, limit: int, now: bool) -> None:
        """Short polls where the highest priority has to be found first, or where there is no time to wait."""
        several = self._sources.several
        if not (several or now):
            return
        with self._lock:
            sources = self._sources.all()
        for source in sources:
            if not several and (self._ready or source.polls):
                continue
            while not self._closed and source.blocked_until <= time.monotonic():
                with self._lock:
                    above = sum(message.place.level >= source.place.level for message in self._ready)
                    wanted = min(10, limit - above, self._prefetch - len(self._held) - above)
                if wanted <= 0:
                    return
                if self._polls.poll(source, wanted, 0, self._hide) < wanted:
                    break

    def _ask(self, limit: int, more: bool = False) -> None:
        """Start the polls that are wanted. `more`: only where there is much to get."""
        now = time.monotonic()
        with self._lock:
            room = min(limit, self._room())
            if room <= 0 or self._closed:
                return
            starts = []
            for source in self._sources.all():
                if source.dropped or source.blocked_until > now or (more and source.width == 1):
                    continue
                wanted = 1 if source.polls == 0 else 0
                if source.width > 1:
                    wanted = max(0, min(source.width, math.ceil(room / 10)) - source.polls)
                for number in range(wanted):
                    first = source.polls == 0 and number == 0 and not more
                    starts.append((source, min(10, room), source.wait(self._client.options.wait) if first else 0))
        for source, count, wait in starts:
            self._polls.start(source, count, wait, self._hide)

    def _take(self, limit: int) -> list[Delivery]:
        now = time.monotonic()
        lease = self.lease
        taken: list[Held] = []
        with self._lock:
            if self._closed:
                return []
            self._promote()
            while self._ready and len(taken) < limit and len(self._held) + len(taken) < self._prefetch:
                message = heapq.heappop(self._ready)
                if message.hidden_until - now > 0.1:  # else it lay here for too long and comes again
                    taken.append(message)
            for message in taken:
                message.deadline = now + lease
                self._held[id(message)] = message
        short = [message for message in taken if message.hidden_until < message.deadline]
        if short:
            self._settler.hide(short, self._hide)
            taken = [message for message in taken if message.hidden_until > now]
        if taken:
            self._watch()
        return [Delivery(m.place.queue, m.body.data, m.deliveries, m) for m in taken]

    def _promote(self) -> None:
        """What has fallen due meanwhile is ready."""
        now = time.time()
        while self._later and self._later[0][0] <= now:
            heapq.heappush(self._ready, heapq.heappop(self._later)[1])

    def _next(self) -> float:
        """When something changes by itself."""
        with self._lock:
            times = [time.monotonic() + self._later[0][0] - time.time()] if self._later else []
            now = time.monotonic()
            times += self._sources.next()
            return min((at for at in times if at > now), default=math.inf)

    # Told by polls -------------------------------------------------------------------------------------------------

    def _failed(self, error: QnbError) -> None:
        self._error = error
        self._gate.open()

    def _arrived(self, source: Source, messages: list[dict[str, Any]], received: float, hidden: float) -> None:
        bells, back, far = [], [], []
        with self._lock:
            for message in messages:
                self._order += 1
                held = Held(source.place, message, received, hidden, self._order)
                left = held.body.due - time.time()
                if held.body.level or held.body.bell:
                    self._sources.tell(source.place.queue, held.body.level, held.body.bell)
                if held.body.bell:
                    bells.append(held)
                elif self._closed or source.dropped:
                    back.append(held)
                elif left > 0 and held.body.far and left > _SOON_SECONDS:
                    far.append(held)
                elif left > 0:
                    # Where SQS has delayed it, a second at most is left, whatever this machine's clock says.
                    due = held.body.due if held.body.far else min(held.body.due, time.time() + 1.0)
                    heapq.heappush(self._later, (due, held))
                else:
                    heapq.heappush(self._ready, held)
            idle = not self._receiving
        self._gate.open()
        if idle and messages:
            self._watch()
        self._settler.delete(bells)
        self._go_back(back)
        for held in far:
            self._postpone(held)

    def _postpone(self, held: Held) -> None:
        """It is due later than SQS can delay: once more, as far as it can."""
        if held.place.fifo:
            failed = self._settler.hide([held], held.body.due - time.time())
        else:
            failed = self._settler.send_anew([held])
        for _, error in failed:
            log.warning("queue %s: a delayed message comes again: %s", held.place.queue, error)

    # Settle ----------------------------------------------------------------------------------------------------

    def _claim(self, deliveries: Iterable[Delivery], keep: bool = False) -> list[Held]:
        """Those that are still ours; they are in nobody's hands from now on, unless kept."""
        now = time.monotonic()
        mine = []
        with self._lock:
            for delivery in deliveries:
                message: Held = delivery.token
                if self._held.get(id(message)) is message and message.end > now:
                    mine.append(message)
                    if not keep:
                        del self._held[id(message)]
        return mine

    def _settled(self, failed: Sequence[tuple[Held, QnbError]]) -> None:
        """Room for others; what could not be settled may be settled again."""
        with self._lock:
            for message, _ in failed:
                self._held[id(message)] = message
        self._gate.open()
        if failed:
            raise failed[0][1]

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        self._settled(self._settler.delete(self._claim(deliveries)))

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        self._settled(self._settler.send_anew(self._claim(deliveries), delay))

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        self._settled(self._settler.bury(self._claim(deliveries), reason))

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        mine = self._claim(deliveries, keep=True)
        with self._lock:
            for message in mine:
                message.deadline = time.monotonic() + seconds
        failed = self._settler.hide(mine, seconds) if mine else []
        self._keep.open()
        if failed:
            raise failed[0][1]

    # What lapses -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """From now on something may lapse."""
        with self._lock:
            if self._keeper is None and not self._closed:
                self._keeper = threading.Thread(target=self._look_after, name="qnb sqs leases", daemon=True)
                self._keeper.start()
        self._keep.open()

    def _look_after(self) -> None:
        """A thread: gives back what its holder let lapse, and what lies here while nobody receives."""
        while not self._closed:
            try:
                at = self._give_back()
            except Exception:
                log.exception("queues %s: the leases are not looked after; going on", ", ".join(self._sources.names))
                at = time.monotonic() + 1.0
            self._keep.wait(min(at - time.monotonic(), _HOUR))

    def _give_back(self) -> float:
        """Do it; when to look again."""
        now = time.monotonic()
        with self._lock:
            lapsed = [message for message in self._held.values() if message.end <= now]
            for message in lapsed:
                del self._held[id(message)]
            stale: list[Held] = []
            if not self._receiving and now - self._idle_since >= GRACE_SECONDS:
                stale = [*self._ready, *(message for _, message in self._later)]
                self._ready, self._later = [], []
            ends = [message.end for message in self._held.values()]
            if self._ready or self._later:
                ends.append(max(now, self._idle_since) + GRACE_SECONDS)
        # What the server has given to somebody else is not touched.
        self._settler.hide([message for message in lapsed if message.hidden_until > now], 0)
        self._go_back(stale)
        if lapsed:
            self._gate.open()
        return min(ends, default=math.inf)

    def _go_back(self, messages: Sequence[Held]) -> None:
        """To the queue, those of high priority first."""
        now = time.monotonic()
        mine = [message for message in messages if message.end > now]
        for level in sorted({message.place.level for message in mine}, reverse=True):
            failed = self._settler.send_anew([message for message in mine if message.place.level == level])
            for _, error in failed[:1]:
                log.warning("messages come back when their lease is over, and not at once: %s", error)

    # -----------------------------------------------------------------------------------------------------------

    def take_from(self, queues: Sequence[str]) -> None:
        self._sources.set(queues)
        with self._lock:
            back = [message for message in self._ready if message.place.queue not in queues]
            back += [message for _, message in self._later if message.place.queue not in queues]
            self._ready = [message for message in self._ready if message.place.queue in queues]
            self._later = [pair for pair in self._later if pair[1].place.queue in queues]
            heapq.heapify(self._ready)
            heapq.heapify(self._later)
        self._go_back(back)
        self._gate.open()

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            back = [*self._ready, *(message for _, message in self._later), *self._held.values()]
            self._ready, self._later, self._held = [], [], {}
        self._gate.open()
        self._keep.open()
        with suppress(QueueGone):
            self._go_back(back)

    def rest(self, seconds: float) -> None:
        """After close: wait for polls that are about to end, so that they can send back what they bring."""
        self._polls.settle(self._sources.all(), seconds)
