"""Taking messages from ZooKeeper on leases: a lock for each, which goes with the session of its holder."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kazoo.exceptions import NotEmptyError

from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.brokers.memory.bus import Gate
from qnb.brokers.zookeeper.batch import Item, commit_items, data_of, delete, put, same
from qnb.brokers.zookeeper.choice import Chooser
from qnb.brokers.zookeeper.claims import Claim, claim_many
from qnb.brokers.zookeeper.link import Lost, Operation
from qnb.brokers.zookeeper.queue import Queues
from qnb.brokers.zookeeper.view import View, list_shards
from qnb.errors import BrokerError

_RETRY_SECONDS = 0.5
_TRIM_EVERY = 100
# Claims that come to nothing since others are faster, before a pause.
_TRIES = 50


@dataclass(slots=True, eq=False)
class Held:
    """A message on a lease of this consumer: its claim, and until when it lasts."""

    claim: Claim
    until: float


class ZookeeperConsumer:
    """See Consumer of the ports.

    The server ends the leases of a session that is gone; those that a living holder lets lapse, a thread of this
    consumer gives back. An extension is noted here and costs nothing.
    """

    def __init__(self, queues: Queues, names: Sequence[str], prefetch: int, lease: float | None) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._queues, self._link, self._prefetch, self._lease = queues, queues.link, max(1, prefetch), lease
        self._views: list[View] = []
        self._asked: list[str] | None = list(dict.fromkeys(names))
        self._served: set[str] = set()
        self._gate = Gate()
        self._receiving = threading.Lock()
        self._claiming = threading.Lock()
        self._lock = threading.Condition()
        self._held: dict[str, Held] = {}  # by the path of the message's node
        self._doubtful: list[Claim] = []
        self._session = self._link.session_id
        self._woken = self.closed = self._full = False
        self._rejected = 0  # since dead letters were trimmed
        self._chooser = Chooser()
        self._wait: float | None = None  # with what is there, but is left to others for a moment
        self._keeper: threading.Thread | None = None
        self._change()
        self.lease = lease or min((view.lease for view in self._views), default=DEFAULT_LEASE)
        self._link.listen(self._connection)

    # ------------------------------------------------------------ receiving

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        with self._receiving:
            while not self.closed:
                if self._asked is not None:
                    self._change()
                try:
                    self._full = True  # before the look for room: whoever makes some, then or later, opens the gate
                    room = min(limit, self._prefetch - len(self._held))
                    self._full = room <= 0
                    got = self._take(room) if room > 0 else []
                except Lost:
                    got = []
                    self._after_loss(deadline)
                now = time.monotonic()
                if got or self._woken or now >= deadline:
                    self._woken = False
                    return got
                if self._asked is None:
                    self._gate.wait(min([deadline - now, *self._patience(room)]))
        return []

    def _patience(self, room: int) -> list[float]:
        """Seconds after which there may be something to do without being told."""
        if room <= 0:
            return []
        return [*(view.patience for view in self._views), *(() if self._wait is None else (self._wait,))]

    def _after_loss(self, deadline: float) -> None:
        for view in self._views:
            view.forget()
        if self.closed:
            return
        self._link.check()
        self._gate.wait(min(0.2, max(0.0, deadline - time.monotonic())))

    def _connection(self) -> None:
        for view in self._views:
            view.forget()
        self._gate.open()

    def _change(self) -> None:
        """Take from other queues."""
        names, self._asked = self._asked or [], None
        known = {view.queue: view for view in self._views}
        self._link.post([delete(view.me) for view in self._views if view.queue not in names])
        self._views = [known.get(name) or View(self._queues, name, self.name, self._gate.open) for name in names]
        self._served.update(names)

    def _take(self, room: int) -> list[Delivery]:
        self._check_session()
        for view in self._views:
            view.look()
        if self._views and not self._lease:
            self.lease = min(view.lease for view in self._views)
        if self._doubtful:
            self._settle_doubts()
        got: list[Claim] = []
        asked = time.monotonic()
        for _ in range(_TRIES):
            choice = self._chooser.choose(self._views, room)
            if choice.refresh:
                for view in self._views:
                    view.refresh()
                continue
            if choice.unlisted:
                list_shards(self._link, self._queues, choice.unlisted)
                continue
            self._wait = choice.wait
            if not choice.claims:
                break
            got = self._claim(choice.claims)
            self._chooser.claimed(len(choice.claims), len(got))
            if got or self._asked is not None:  # all that was wanted, or what others left of it
                break
        else:
            self._wait = _RETRY_SECONDS
        return self._hand_out(got, asked)

    def _claim(self, chosen: list[Claim]) -> list[Claim]:
        with self._claiming:
            if self._asked is not None or self.closed:  # no longer from these queues
                return []
            try:
                return claim_many(self._link, self.name, chosen)
            except Lost:
                self._doubtful += chosen
                raise

    def _hand_out(self, claims: Sequence[Claim], asked: float) -> list[Delivery]:
        until = asked + self.lease
        deliveries = []
        with self._lock:
            for one in claims:
                held = Held(one, until)
                self._held[one.path] = held
                deliveries.append(Delivery(one.view.queue, one.body, one.deliveries, held))
            self._lock.notify_all()
        if deliveries and self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="qnb-zookeeper-leases", daemon=True)
            self._keeper.start()
        if self.closed:
            self.release_many(deliveries)
            return []
        return deliveries

    def _check_session(self) -> None:
        """After a session has expired its locks are gone, and what they held with them."""
        session = self._link.session_id
        if session is None:
            raise Lost("no session")
        if session != self._session:
            self._session = session
            with self._lock:
                self._held.clear()
            self._doubtful.clear()
            for view in self._views:
                view.forget()

    def _settle_doubts(self) -> None:
        """The connection broke in a claim: locks of it that are there are given back."""
        found = self._link.attempt([data_of(one.lock_path) for one in self._doubtful])
        mine = [
            Item([delete(one.lock_path)])
            for one, answer in zip(self._doubtful, found, strict=True)
            if not isinstance(answer, Exception) and answer[0] == self.name.encode() and one.path not in self._held
        ]
        commit_items(self._link, mine, once=True)
        self._doubtful.clear()
        for view in self._views:
            view.forget()

    def take_from(self, queues: Sequence[str]) -> None:
        self._asked = list(dict.fromkeys(queues))
        self._gate.open()
        with self._claiming:
            pass  # from here on nothing of the queues before is taken

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    # ------------------------------------------------------------ settling

    def _mine(self, deliveries: Iterable[Delivery], *, keep: bool = False) -> list[tuple[Delivery, Claim]]:
        """Those whose lease is not over; they are no longer held."""
        now = time.monotonic()
        mine = []
        with self._lock:
            for delivery in deliveries:
                held: Held = delivery.token
                path = held.claim.path
                if self._held.get(path) is held and held.until > now:
                    mine.append((delivery, held.claim))
                    if not keep:
                        del self._held[path]
        return mine

    def _room(self) -> None:
        if self._full:
            self._gate.open()

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        claims = [claim for _, claim in self._mine(deliveries)]
        if claims:
            items = [Item(claim.last_removal) for claim in claims]
            commit_items(self._link, items)
            # Something of somebody else is in the shard: it stays.
            again = [one for one, item in zip(claims, items, strict=True) if isinstance(item.error, NotEmptyError)]
            commit_items(self._link, [Item(claim.removal) for claim in again])
            self._sweep(claim for claim in claims if claim.shard.name.count > 1)
            self._room()

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        mine = self._mine(deliveries)
        if mine:
            letters = [self._queues.letter(delivery.queue, delivery.body, reason) for delivery, _ in mine]
            items = [Item([*claim.removal, letter]) for (_, claim), letter in zip(mine, letters, strict=True)]
            commit_items(self._link, items)
            self._rejected += len(mine)
            if self._rejected >= _TRIM_EVERY:
                self._rejected = 0
                for queue in {delivery.queue for delivery, _ in mine}:
                    self._queues.trim_dead(queue)
            self._sweep(claim for _, claim in mine)
            self._room()

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        mine = self._mine(deliveries)
        for queue in dict.fromkeys(delivery.queue for delivery, _ in mine):
            of_queue = [(delivery, claim) for delivery, claim in mine if delivery.queue == queue]
            if delay > 0:
                items = self._delayed(queue, of_queue, delay)
                commit_items(self._link, items)
                self._sweep(claim for _, claim in of_queue)
            else:
                commit_items(self._link, [Item(claim.renewal(self._link)) for _, claim in of_queue], self._back(queue))
        if mine:
            self._room()

    def _delayed(self, queue: str, mine: Sequence[tuple[Delivery, Claim]], delay: float) -> list[Item]:
        """Each to a shard of its own: one that is late must not keep the others."""
        items = []
        for delivery, claim in mine:
            messages = [(delivery.body, delivery.deliveries - 1)]
            draft = self._queues.draft(queue, claim.shard.name.priority, delay, messages)
            items.append(Item([*claim.removal, *draft.operations]))
        return items

    def _back(self, queue: str) -> list[Operation]:
        return [put(self._queues.path(queue, "back"), b"")]

    def _sweep(self, claims: Iterable[Claim]) -> None:
        """Remove shards that may be empty now."""
        self._queues.sweep({one.shard.path for one in claims if not one.shard.free})

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._lock:
            now = time.monotonic()
            for delivery in deliveries:
                held: Held = delivery.token
                if self._held.get(held.claim.path) is held and held.until > now:
                    held.until = until
            self._lock.notify_all()

    # ------------------------------------------------------------ leases that lapse

    def _keep(self) -> None:
        """Give back what its holder lets lapse. In a thread of its own."""
        while True:
            with self._lock:
                if self.closed:
                    return
                now = time.monotonic()
                lapsed = [held for held in self._held.values() if held.until <= now]
                if not lapsed:
                    soonest = min((held.until for held in self._held.values()), default=now + 3600)
                    self._lock.wait(soonest - now)
                    continue
                for held in lapsed:
                    del self._held[held.claim.path]
            try:
                self._give_back([held.claim for held in lapsed])
            except BrokerError:  # the server is away: it ends the session, or hears of it later
                with self._lock:
                    if self._ended():
                        return
                    for held in lapsed:
                        held.until = time.monotonic() + _RETRY_SECONDS
                        self._held.setdefault(held.claim.path, held)

    def _ended(self) -> bool:
        """Whether another thread has closed it meanwhile."""
        return self.closed

    def _give_back(self, claims: Sequence[Claim]) -> None:
        for queue in dict.fromkeys(claim.view.queue for claim in claims):
            items = [
                Item([same(claim.path, claim.version), delete(claim.lock_path)])
                for claim in claims
                if claim.view.queue == queue
            ]
            commit_items(self._link, items, self._back(queue))
        self._room()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._gate.open()
        left = self._receiving.acquire(timeout=5.0)
        try:
            with self._lock:
                held = [
                    Delivery(one.claim.view.queue, one.claim.body, one.claim.deliveries, one)
                    for one in self._held.values()
                ]
                self._lock.notify_all()
            self.release_many(held)
            if self._doubtful:
                self._settle_doubts()
            signed_in = [self._queues.path(queue, "consumers", self.name) for queue in self._served]
            commit_items(self._link, [Item([delete(path)]) for path in signed_in])
        except (BrokerError, Lost):
            pass  # the server is away: what is unsettled comes back when the session ends
        finally:
            self._link.unlisten(self._connection)
            if left:
                self._receiving.release()
