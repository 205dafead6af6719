"""A backend and a broker as somebody else would write them: from the words of the ports, and without a line of ours.

They are found by dotted path ("tests.third_party:TheirBackend") and pass the suite that ours pass. Theirs live in one
process and look again every few milliseconds, as one does with a server that cannot call back.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace

from qnb.brokers.base import DEFAULT_LEASE, PRESENCE_SECONDS, DeadLetter, Delivery, Presence
from qnb.errors import PayloadTooLarge, Unsupported
from qnb.features import Features, Limits, Support
from qnb.message import Stored
from qnb.settings import parse_url

# ---------------------------------------------------------------- a backend

_TABLES = defaultdict(dict)  # place → rows: (kind, …) → (until, value)
_LOCK = threading.RLock()


class TheirBackend:
    scheme, durable, blobs = "theirs", False, True

    def __init__(self, url):
        address = parse_url(url)
        self.url, self._expires = str(address), address.number("expires", 7 * 86400)
        self._rows = _TABLES[address.options.get("name"), address.options.get("prefix")]

    def _put(self, key, value, first=False):
        with _LOCK:
            if first and self._rows.get(key, (0.0, None))[0] > time.monotonic():
                return False
            self._rows[key] = (time.monotonic() + self._expires, value)
            return True

    def _all(self, *front):
        with _LOCK:
            rows = [(key, *row) for key, row in self._rows.items() if key[: len(front)] == front]
        return [(key, value) for key, until, value in rows if until > time.monotonic()]

    def store_many(self, outcomes):
        return [one for one in outcomes if not self._put(("outcome", one.run, one.first), one, first=True)]

    def fetch_many(self, run, spans=None):
        found = sorted((value for _, value in self._all("outcome", run)), key=lambda one: one.first)
        return [one for one in found if spans is None or any(_touch(one, *span) for span in spans)]

    def save_run(self, record):
        self._put(("run", record.run), record)

    def load_run(self, run):
        return next((value for _, value in self._all("run", run)), None)

    def list_runs(self, limit=1000):
        return sorted((value for _, value in self._all("run")), key=lambda one: -one.created_at)[:limit]

    def forget_run(self, run):
        with _LOCK:
            for key in [key for key in self._rows if key[0] != "blob" and key[1] == run]:
                del self._rows[key]

    def put_blob(self, key, data):
        self._put(("blob", key), bytes(data))

    def get_blob(self, key):
        return next((value for _, value in self._all("blob", key)), None)

    def revoke_many(self, spans):
        for span in spans:
            self._put(("revoked", *span), None)

    def revoked(self):
        return [key[1:] for key, _ in self._all("revoked")]

    def close(self):
        pass


def _touch(one: Stored, first: int, calls: int) -> bool:
    return one.first < first + calls and first < one.first + one.count


# ---------------------------------------------------------------- a broker


@dataclass(eq=False)
class _Message:
    queue: str
    body: bytes
    order: tuple[int, int]  # the highest priority first, and then the oldest
    due: float  # when it may be taken: at once, when its delay is over, or when its lease is
    deliveries: int = 0
    holder: object = None
    claim: int = 0


def _new_place():
    return SimpleNamespace(lock=threading.RLock(), leases={}, messages=[], dead=[], boxes={}, present={})


_PLACES = defaultdict(_new_place)
_NUMBERS = count(1)


class TheirBroker:
    scheme = "theirs"
    features = Features(
        **{name: Support.BUILT for name in Features.__annotations__ if name not in ("survives_restart", "limits")},
        survives_restart=Support.NONE,
        limits=Limits(priority_levels=10),
    )

    def __init__(self, url):
        address = parse_url(url)
        self.url, self._lease = str(address), address.number("lease", 0.0)
        self._place = _PLACES[address.options.get("name"), address.options.get("prefix")]
        most = int(address.number("max_message", 0)) or None
        self.features = replace(self.features, limits=replace(self.features.limits, message_bytes=most))

    def declare(self, spec):
        self._place.leases[spec.name] = spec.lease

    def publish_many(self, envelopes):
        most, now = self.features.limits.message_bytes, time.monotonic()
        for one in envelopes:
            if not 0 <= one.priority < 10:
                raise Unsupported(f"priority {one.priority}: there are 0 to 9")
            if most is not None and len(one.body) > most:
                raise PayloadTooLarge(f"a message of {len(one.body)} bytes; {most} are allowed")
        with self._place.lock:
            for one in envelopes:
                self._place.leases.setdefault(one.queue, DEFAULT_LEASE)
                order = (-one.priority, next(_NUMBERS))
                self._place.messages.append(_Message(one.queue, one.body, order, now + one.delay))

    def publish_and_receive(self, envelopes, inbox, limit, timeout):
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues, *, prefetch):
        lease = self._lease or min(
            (self._place.leases.get(name, DEFAULT_LEASE) for name in queues), default=DEFAULT_LEASE
        )
        return _Consumer(self._place, queues, prefetch, lease)

    def _waiting(self, queue):
        now = time.monotonic()
        return [m for m in self._place.messages if m.queue == queue and (m.holder is None or m.due <= now)]

    def depth(self, queue):
        with self._place.lock:
            return len(self._waiting(queue))

    def queues(self, prefix=""):
        return sorted(name for name in self._place.leases if name.startswith(prefix))

    def purge(self, queue):
        with self._place.lock:
            dropped = self._waiting(queue)
            self._place.messages = [m for m in self._place.messages if m not in set(dropped)]
            return len(dropped)

    def remove(self, queue):
        with self._place.lock:
            self._place.messages = [m for m in self._place.messages if m.queue != queue]
            self._place.dead = [letter for letter in self._place.dead if letter.queue != queue]
            self._place.leases.pop(queue, None)

    def dead_letters(self, queue, limit=100):
        return [letter for letter in reversed(self._place.dead) if letter.queue == queue][:limit]

    def bus(self):
        return _Bus(self._place)

    def partner(self, backend):
        return None

    def close(self):
        pass


class _Waiter:
    """Something that waits, is woken and is closed."""

    _woken = _closed = False

    def wake(self):
        self._woken = True

    def _wait(self, end):
        """Whether to look again."""
        if self._woken or self._closed or time.monotonic() >= end:
            self._woken = False
            return False
        time.sleep(0.002)
        return True


class _Consumer(_Waiter):
    def __init__(self, place, queues, prefetch, lease):
        self._place, self._prefetch, self.lease = place, prefetch, lease
        self.take_from(queues)

    def take_from(self, queues):
        self._queues = set(queues)

    def receive_many(self, limit, timeout):
        end = time.monotonic() + timeout
        while True:
            with self._place.lock:
                taken = [] if self._closed else self._take(limit)
            if taken or not self._wait(end):
                return taken

    def _take(self, limit):
        now, messages = time.monotonic(), self._place.messages
        room = min(limit, self._prefetch - sum(m.holder is self and m.due > now for m in messages))
        ready = sorted((m for m in messages if m.queue in self._queues and m.due <= now), key=lambda m: m.order)
        taken = ready[: max(0, room)]
        for m in taken:
            m.deliveries, m.holder, m.claim, m.due = m.deliveries + 1, self, next(_NUMBERS), now + self.lease
        return [Delivery(m.queue, m.body, m.deliveries, (m, m.claim)) for m in taken]

    def _settle(self, deliveries, change):
        now = time.monotonic()
        with self._place.lock:
            for m, claim in [delivery.token for delivery in deliveries]:
                if m.holder is self and m.claim == claim and m.due > now and m in self._place.messages:
                    change(m, now)

    def ack_many(self, deliveries):
        self._settle(deliveries, lambda m, now: self._place.messages.remove(m))

    def release_many(self, deliveries, delay=0.0):
        def release(m, now):
            m.holder, m.due, m.deliveries = None, now + delay, m.deliveries - 1

        self._settle(deliveries, release)

    def reject_many(self, deliveries, reason):
        def reject(m, now):
            self._place.messages.remove(m)
            self._place.dead.append(DeadLetter(m.queue, m.body, reason))

        self._settle(deliveries, reject)

    def extend_many(self, deliveries, seconds):
        self._settle(deliveries, lambda m, now: setattr(m, "due", now + seconds))

    def close(self):
        self._closed = True
        with self._place.lock:
            self.release_many([Delivery("", b"", 0, (m, m.claim)) for m in self._place.messages])


class _Bus:
    def __init__(self, place):
        self._place = place

    def join(self, peer):
        return _Inbox(self._place, peer)

    def post_many(self, notes):
        for note in notes:
            if (box := self._place.boxes.get(note.to)) is not None:
                box.append(note)

    def peers(self, prefix=""):
        there = sorted(
            (peer, info) for peer, (until, info) in list(self._place.present.items()) if until > time.monotonic()
        )
        return [Presence(peer, info) for peer, info in there if peer.startswith(prefix)]


class _Inbox(_Waiter):
    def __init__(self, place, peer):
        self._place, self.peer = place, peer
        self._notes = place.boxes[peer] = []

    def receive_many(self, limit, timeout):
        end, box = time.monotonic() + timeout, self._notes
        while not box and self._wait(end):
            pass
        # Nothing is called between here and the return, so that no Ctrl-C comes in between.
        notes = box[:limit]
        del box[:limit]
        return notes

    def beat(self, info=b""):
        self._place.present[self.peer] = (time.monotonic() + PRESENCE_SECONDS, info)

    def close(self):
        self._closed = True
        if self._place.boxes.get(self.peer) is self._notes:
            del self._place.boxes[self.peer]
            self._place.present.pop(self.peer, None)
