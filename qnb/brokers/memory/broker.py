"""The broker inside one process: queues in memory, consumers on threads. `memory:` and `memory://name`.

Brokers of one name in one process share what they hold; it is gone when the last of them closes.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from qnb.brokers.base import DEFAULT_LEASE, DeadLetter, Delivery, Inbox, QueueSpec, Settle, Turn
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.memory.bus import Gate, Mailboxes, MemoryBus
from qnb.errors import BrokerUnavailable
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note, Stored
from qnb.settings import parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend
    from qnb.brokers.base import Consumer


class _Message:
    """A message, waiting or held. `due` is when its delay or lease is over; None when it is ready or gone."""

    __slots__ = ("body", "claim", "deliveries", "due", "holder", "order", "priority", "queue")

    def __init__(self, queue: _Queue, envelope: Envelope, order: int) -> None:
        self.queue = queue
        self.body = envelope.body
        self.priority = envelope.priority
        self.order = order
        self.deliveries = 0
        self.due: float | None = None
        self.holder: MemoryConsumer | None = None
        self.claim = 0  # which lease this is: an older one settles nothing


class _Queue:
    """One queue. All of it under the lock of its space."""

    def __init__(self, spec: QueueSpec) -> None:
        self.name = spec.name
        self.lease = spec.lease
        self.ready: list[tuple[int, int, _Message]] = []
        self.due: list[tuple[float, int, _Message]] = []
        self.held = 0
        self.delayed = 0
        self.waiting: deque[Gate] = deque()
        self.dead: list[DeadLetter] = []

    def add(self, message: _Message, delay: float, now: float) -> None:
        """Put a message in, or back."""
        if delay > 0:
            self.delayed += 1
            self.postpone(message, now + delay)
        else:
            message.due = None
            heapq.heappush(self.ready, (-message.priority, message.order, message))

    def postpone(self, message: _Message, until: float) -> None:
        """Note when a delay or a lease is over."""
        message.due = until
        # Entries of settled messages stay until they are on top; a busy queue with long leases would keep too many.
        if len(self.due) > 64 + 2 * (self.held + self.delayed):
            self.due = [entry for entry in self.due if entry[2].due == entry[0]]
            heapq.heapify(self.due)
        heapq.heappush(self.due, (until, message.order, message))

    def promote(self, now: float) -> float | None:
        """Make ready what has fallen due; when the next one will."""
        while self.due:
            at, _, message = self.due[0]
            if message.due == at:
                if at > now:
                    return at
                self.let_go(message)
                self.add(message, 0, now)
            heapq.heappop(self.due)
        return None

    def let_go(self, message: _Message) -> None:
        """The end of a lease or a delay."""
        message.due = None
        if message.holder is None:
            self.delayed -= 1
            return
        message.holder.held.discard(message)
        message.holder.gate.open()
        message.holder = None
        self.held -= 1

    def ring(self) -> None:
        """Wake as many of those who wait as there are messages, the longest waiting first."""
        for _ in range(min(len(self.ready), len(self.waiting))):
            self.waiting.popleft().open()

    def purge(self) -> int:
        dropped = len(self.ready) + self.delayed
        self.ready.clear()
        self.delayed = 0
        self.due = [entry for entry in self.due if entry[2].holder is not None]
        heapq.heapify(self.due)
        return dropped


class _Space:
    """What the brokers of one name share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.queues: dict[str, _Queue] = {}
        self.mailboxes = Mailboxes()
        self.numbers = count(1)

    def queue(self, name: str) -> _Queue:
        """The queue of a name, made when it is not there: a worker may start before the session."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = _Queue(QueueSpec(name))
        return found

    def publish(self, envelopes: Iterable[Envelope]) -> None:
        now = time.monotonic()
        touched = set()
        for envelope in envelopes:
            queue = self.queue(envelope.queue)
            queue.add(_Message(queue, envelope, next(self.numbers)), envelope.delay, now)
            touched.add(queue)
            if envelope.delay > 0:  # whoever waits has to wait for this one too
                for gate in queue.waiting:
                    gate.open()
        for queue in touched:
            queue.ring()


_spaces: dict[tuple[str, str], _Space] = {}
_spaces_lock = threading.Lock()


class MemoryConsumer:
    """Takes messages of some queues on leases."""

    def __init__(self, space: _Space, queues: Sequence[str], prefetch: int, lease: float | None) -> None:
        self._space = space
        self._names = list(dict.fromkeys(queues))
        with space.lock:
            self.lease = lease or min((queue.lease for queue in self._queues), default=DEFAULT_LEASE)
        self._prefetch = max(1, prefetch)
        self._woken = False
        self._closed = False
        self.gate = Gate()
        self.held: set[_Message] = set()

    @property
    def _queues(self) -> list[_Queue]:
        """Looked up each time: a queue may be removed and made anew."""
        return [self._space.queue(name) for name in self._names]

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = time.monotonic() + timeout
        while True:
            with self._space.lock:
                now = time.monotonic()
                dues = [at for queue in self._queues if (at := queue.promote(now)) is not None]
                room = min(limit, self._prefetch - len(self.held))
                taken = [] if self._closed else self._take(room, now)
                if taken or self._woken or self._closed or now >= end:
                    self._woken = False
                    self._pass_on()
                    return taken
                if room > 0:
                    self._enlist()
            self.gate.wait(min([end, *dues]) - now)

    def _take(self, room: int, now: float) -> list[Delivery]:
        taken: list[Delivery] = []
        while len(taken) < room:
            ready = [queue for queue in self._queues if queue.ready]
            if not ready:
                break
            queue = ready[0] if len(ready) == 1 else min(ready, key=lambda each: each.ready[0][:2])
            message = heapq.heappop(queue.ready)[2]
            message.deliveries += 1
            message.claim = next(self._space.numbers)
            message.holder = self
            self.held.add(message)
            queue.held += 1
            queue.postpone(message, now + self.lease)
            taken.append(Delivery(queue.name, message.body, message.deliveries, (message, message.claim)))
        return taken

    def _enlist(self) -> None:
        for queue in self._queues:
            if self.gate not in queue.waiting:
                queue.waiting.append(self.gate)

    def _pass_on(self) -> None:
        """Wait no more; a bell meant for what this consumer leaves behind goes to the next."""
        for queue in self._queues:
            with suppress(ValueError):
                queue.waiting.remove(self.gate)
            queue.ring()

    def _mine(self, deliveries: Sequence[Delivery]) -> list[_Message]:
        """Those of the deliveries whose lease is not over."""
        now = time.monotonic()
        for queue in self._queues:
            queue.promote(now)
        mine = []
        for delivery in deliveries:
            message, claim = delivery.token
            if message.claim == claim and message.holder is self:
                message.queue.let_go(message)
                mine.append(message)
        return mine

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        with self._space.lock:
            self._mine(deliveries)

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        with self._space.lock:
            now = time.monotonic()
            touched = dict.fromkeys(self._queues)
            for message in self._mine(deliveries):
                message.deliveries -= 1
                message.queue.add(message, delay, now)
                touched[message.queue] = None
            for queue in touched:
                for gate in queue.waiting if delay > 0 else ():
                    gate.open()
                queue.ring()

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        with self._space.lock:
            for message in self._mine(deliveries):
                message.queue.dead.append(DeadLetter(message.queue.name, message.body, reason))

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        with self._space.lock:
            now = time.monotonic()
            for message in self._mine(deliveries):
                message.holder = self
                self.held.add(message)
                message.queue.held += 1
                message.queue.postpone(message, now + seconds)

    def take_from(self, queues: Sequence[str]) -> None:
        with self._space.lock:
            self._pass_on()
            self._names = list(dict.fromkeys(queues))
        self.gate.open()

    def wake(self) -> None:
        self._woken = True
        self.gate.open()

    def close(self) -> None:
        with self._space.lock:
            self._closed = True
            self.release_many([Delivery("", b"", 0, (message, message.claim)) for message in self.held])
            self._pass_on()
        self.gate.open()


class MemoryBroker:
    """Queues of this process. Nothing of it outlives the process, and no other process sees it."""

    scheme: ClassVar[str] = "memory"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.NATIVE,
        redelivery=Support.NATIVE,
        delay=Support.NATIVE,
        priority=Support.NATIVE,
        dead_letter=Support.NATIVE,
        monitoring=Support.NATIVE,
        remote_control=Support.NATIVE,
        purge=Support.NATIVE,
        queue_depth=Support.NATIVE,
        survives_restart=Support.NONE,
        limits=Limits(priority_levels=10),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.features = with_limit(self.features, address)
        self.place = memory_place(url)
        self._lease = address.number("lease", 0.0) or None
        self._closed = False
        with _spaces_lock:
            self._shared = _spaces.setdefault(self.place, _Space())
            self._shared.users += 1

    @property
    def _space(self) -> _Space:
        if self._closed:
            raise BrokerUnavailable(f"{self.url} is closed: open a new one")
        return self._shared

    def declare(self, spec: QueueSpec) -> None:
        with self._space.lock:
            self._space.queue(spec.name).lease = spec.lease

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        check_envelopes(envelopes, self.features, self.url)
        with self._space.lock:
            self._space.publish(envelopes)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> MemoryConsumer:
        return MemoryConsumer(self._space, queues, prefetch, self._lease)

    def depth(self, queue: str) -> int | None:
        with self._space.lock:
            found = self._space.queues.get(queue)
            if found is None:
                return 0
            found.promote(time.monotonic())
            return len(found.ready) + found.delayed

    def queues(self, prefix: str = "") -> Sequence[str]:
        with self._space.lock:
            return sorted(name for name in self._space.queues if name.startswith(prefix))

    def purge(self, queue: str) -> int:
        with self._space.lock:
            found = self._space.queues.get(queue)
            if found is None:
                return 0
            found.promote(time.monotonic())
            return found.purge()

    def remove(self, queue: str) -> None:
        with self._space.lock:
            found = self._space.queues.pop(queue, None)
            if found is not None:
                _empty(found)
                for gate in found.waiting:
                    gate.open()

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        with self._space.lock:
            found = self._space.queues.get(queue)
            return found.dead[::-1][:limit] if found else []

    def bus(self) -> MemoryBus:
        return MemoryBus(self._space.mailboxes)

    def partner(self, backend: Backend) -> Settle | None:
        """Settles with a `memory:` backend of the same name."""
        if backend.scheme != self.scheme or getattr(backend, "place", None) != self.place:
            return None

        def settle(consumer: Consumer, turn: Turn) -> Sequence[Stored]:
            check_envelopes(turn.publish, self.features, self.url)
            with self._space.lock:
                self._space.publish(turn.publish)
                refused = backend.store_many(turn.store) if turn.store else []
                self._space.mailboxes.post(turn.post)
                consumer.ack_many(turn.ack)
            return refused

        return settle

    def close(self) -> None:
        with _spaces_lock:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            if not self._shared.users and _spaces.get(self.place) is self._shared:
                del _spaces[self.place]


def memory_place(url: str) -> tuple[str, str]:
    """What of a memory: URL says which ones share: its name and its prefix."""
    address = parse_url(url)
    name = (address.hosts[0][0] if address.hosts else "") + address.path.strip("/")
    return name, address.options.get("prefix", "")


def _empty(queue: _Queue) -> None:
    """Everything out of a removed queue, so that consumers that still hold it find and settle nothing."""
    for _, _, message in queue.due:
        if message.holder is not None:
            message.holder.held.discard(message)
            message.holder.gate.open()
            message.holder = None
    queue.ready.clear()
    queue.due.clear()
    queue.dead.clear()
    queue.held = queue.delayed = 0
