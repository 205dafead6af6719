"""Taking messages from Redis streams: groups, leases by idle time, delays, levels."""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from qnb.brokers.base import DEFAULT_LEASE, Delivery
from qnb.brokers.redis.client import AT_ONCE, Client, Line, Wait, wait_until
from qnb.brokers.redis.link import Command, Reply, ServerError
from qnb.brokers.redis.scripts import ACK, CLAIM, EXTEND, GROUP, LEAVE, LOOK, REJECT, RELEASE, script
from qnb.errors import BrokerError

# (queue, level, id, delivery count of the entry): names one delivery, not only one message.
Token = tuple[str, int, str, int]

_DEAF_LOOK = 0.5  # seconds between looks of a consumer that cannot be woken


class ConsumerOptions(msgspec.Struct, frozen=True):
    """`force` is set when the URL names the lease: then it replaces what the queue was declared with."""

    base: str
    lease: float = DEFAULT_LEASE
    force: bool = False
    dead_letters: int = 10_000


class RedisConsumer:
    """See Consumer of the ports.

    The receiving thread has a link of its own, where it blocks; settling goes through the pool. A stream of its own
    is read along with the queues: an entry there, from wake() or from the publisher of something that is due earlier
    than this consumer knows, ends the blocked read.
    """

    def __init__(self, client: Client, queues: Sequence[str], prefetch: int, options: ConsumerOptions) -> None:
        self.lease = options.lease
        self._client, self._queues, self._prefetch, self._options = client, list(queues), prefetch, options
        self._asked: Sequence[str] | None = None  # queues to take from, from the next look on
        self._served = list(queues)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._wake_key = f"{options.base}wake:{self._name}".encode()
        self._line = Line(client, self._rest, self._nudge)
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._unsettled: dict[Token, tuple[Delivery, float]] = {}  # and since when at most
        self._woken = self._closed = self._full = False
        self._look_at = 0.0
        self._noted = False  # an entry came to the wake stream
        self._quiet = False  # the last read waited for nothing: the next one need not ask level by level before
        self._levels: dict[str, list[int]] = {}
        self._streams: dict[bytes, tuple[str, int]] = {}  # in order of priority
        self._read_from: Command = ()  # the last part of XREADGROUP

    # ------------------------------------------------------------ receiving

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        with self._receiving:
            while True:
                if self._asked is not None:
                    self._change()
                room = min(limit, self._prefetch - len(self._unsettled))
                asked = time.monotonic()
                if not self._queues:
                    got = self._await_queues(deadline)
                else:
                    got = self._take(room, deadline, asked) if room > 0 else self._await_room(deadline)
                if got:
                    return self._hand_out(got, limit, asked)
                if self._closed or self._woken or time.monotonic() >= deadline:
                    self._woken = False
                    return []

    def _change(self) -> None:
        queues, self._asked = self._asked, None
        self._queues = list(queues or ())
        self._served += [queue for queue in self._queues if queue not in self._served]
        self._levels.clear()
        self._streams.clear()
        self._look_at = 0.0

    def _await_queues(self, deadline: float) -> list[Delivery]:
        with self._changed:
            if not (self._woken or self._closed or self._asked is not None):
                self._changed.wait(max(0.0, deadline - time.monotonic()))
        return []

    def _take(self, room: int, deadline: float, now: float) -> list[Delivery]:
        if now >= self._look_at or not self._line.connected:
            got = self._look(room, deadline)
            if got or now >= self._look_at:
                return got
        if self._closed or self._woken:
            deadline = 0.0
        if len(self._streams) > 1:
            got = [] if self._quiet else self._claim(room, deadline)
            if got:
                return got
            room = 1
        got = self._read(room, deadline)
        self._quiet = not got
        return got

    def _read(self, room: int, deadline: float) -> list[Delivery]:
        """Wait for messages on all streams until the deadline, or until it is time to look again."""
        wait = wait_until(deadline, self._look_at)
        group = ("XREADGROUP", "GROUP", GROUP, self._name, "COUNT", room)
        reply = self._ask((*group, *wait.block, *self._read_from), wait, deadline)
        got: list[Delivery] = []
        for key, entries in reply or ():
            if key == self._wake_key:
                self._noted = True
                if any(fields[0] == b"w" for _, fields in entries):  # from a publisher, not from this process
                    self._look_at = 0.0
            else:
                got += self._deliveries(*self._streams[key], entries)
        if self._look_at == 0.0 and got:
            # Something urgent may have come at the same time, on a level that was not read.
            got = self._look(room, deadline) + self._claim(room, deadline) + got
            got.sort(key=lambda delivery: -delivery.token[1])
        return got

    def _claim(self, room: int, deadline: float) -> list[Delivery]:
        """Take what is there, the highest level first. The plain read would take from all levels at once."""
        arguments = {"me": self._name, "limit": room, "queues": self._queues}
        reply = self._ask(script(CLAIM, self._options.base, arguments), AT_ONCE, deadline)
        return [
            one for queue, level, entries in reply or () for one in self._deliveries(queue.decode(), level, entries)
        ]

    @staticmethod
    def _deliveries(queue: str, level: int, entries: Reply) -> list[Delivery]:
        return [
            Delivery(queue, fields[1], 1 + (int(fields[3]) if len(fields) > 2 else 0), (queue, level, name.decode(), 1))
            for name, fields in entries
        ]

    def _look(self, room: int, deadline: float) -> list[Delivery]:
        """See to due and expired messages, and learn levels, lease and when to look again."""
        got: list[Delivery] = []
        soonest = math.inf
        lost = not self._line.connected
        for position, queue in enumerate(self._queues):
            arguments = {
                "me": self._name,
                "queue": queue,
                "lease": round(self._options.lease * 1000),
                "force": self._options.force,
                "limit": room - len(got),
                "woken": self._noted and position == 0,
            }
            if lost:
                arguments["known"] = [f"{token[1]}:{token[2]}" for token in list(self._unsettled) if token[0] == queue]
            reply = self._ask(script(LOOK, self._options.base, arguments), AT_ONCE, deadline)
            if reply is None:
                return got
            lease, rest, levels, taken, wakeful = reply
            self.lease = lease / 1000
            soonest = min(soonest, rest / 1000 if wakeful else _DEAF_LOOK)
            self._set_levels(queue, [int(level) for level in levels])
            for level, entry, count, before, body in taken:
                name = entry.decode()
                self._unsettled.pop((queue, level, name, count - 1), None)  # its own, when its lease ran out
                got.append(Delivery(queue, body, count + before, (queue, level, name, count)))
            keys = [*self._streams, self._wake_key] if wakeful else [*self._streams]  # else there is no memory for it
            self._read_from = ("STREAMS", *keys, *(">" for _ in keys))
        self._noted = self._quiet = False
        self._look_at = time.monotonic() + soonest
        return got

    def _set_levels(self, queue: str, levels: list[int]) -> None:
        if self._levels.get(queue) == levels:
            return
        self._levels[queue] = levels
        pairs = [(level, name) for name, all_levels in self._levels.items() for level in all_levels]
        pairs.sort(key=lambda pair: -pair[0])  # stable: among equal levels the order of the queues
        self._streams = {f"{self._options.base}q{level}:{name}".encode(): (name, level) for level, name in pairs}

    def _ask(self, command: Command, wait: Wait, deadline: float) -> Reply:
        """The reply on this consumer's own link; None when it broke, or when groups are gone and will be made again."""
        replies = self._line.exchange((command,), wait, max(deadline, time.monotonic()))
        if replies is None:
            return None
        reply = replies[0]
        if not isinstance(reply, ServerError):
            return reply
        if reply.code == "NOGROUP":  # flushed, removed, or restarted without its data
            self._look_at = 0.0
            return None
        if reply.code == "NOSCRIPT":
            return self._client.one(*command)
        raise self._client.translate(reply) from reply

    def _hand_out(self, got: list[Delivery], limit: int, asked: float) -> Sequence[Delivery]:
        for delivery in got:
            self._unsettled[delivery.token] = delivery, asked
        if self._closed:
            self.release_many(got)
            return []
        if len(got) > limit:  # the plain read gives one from each of several streams; seldom two have one
            self.release_many(got[limit:])
            del got[limit:]
        return got

    def _await_room(self, deadline: float) -> list[Delivery]:
        with self._changed:
            self._full = True
            if not (self._woken or self._closed or len(self._unsettled) < self._prefetch):
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            self._full = False
        return []

    def _rest(self, seconds: float) -> None:
        """Pause between tries to reach the server; cut short by wake and close."""
        with self._changed:
            if not (self._woken or self._closed):
                self._changed.wait(seconds)

    def take_from(self, queues: Sequence[str]) -> None:
        self._asked = list(dict.fromkeys(queues))
        with self._changed:
            self._changed.notify_all()
        if self._receiving.locked():
            self._nudge()

    def wake(self) -> None:
        self._woken = True
        with self._changed:
            self._changed.notify_all()
        if self._receiving.locked():
            self._nudge()

    def _nudge(self) -> None:
        note: Command = ("XADD", self._wake_key, "NOMKSTREAM", "MAXLEN", "~", 16, "*", "n", "1")
        with suppress(BrokerError):  # then the read ends by itself: its link is broken too
            self._client.run((note,), patience=0.0)

    # ------------------------------------------------------------ settling

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        if self.surely_holds(deliveries):
            self._client.all(self.plain_ack(deliveries))
            self.settled(deliveries)
        else:
            self._settle(ACK, deliveries, [d.token for d in deliveries])

    def surely_holds(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether their leases cannot be over, by this side's clock alone; then they may be acked without a look.

        The clock starts when they were asked for, which is before they were given. Should this process stand still
        for the other half of the lease before the ack arrives, it acks what another is running: no loss, for an ack
        comes after, or in one step with, the outcome.
        """
        limit = time.monotonic() - self.lease / 2
        found = (self._unsettled.get(delivery.token) for delivery in deliveries)
        return all(held is not None and held[1] > limit for held in found)

    def plain_ack(self, deliveries: Sequence[Delivery]) -> list[Command]:
        """The commands that ack, without a look at whose they are. XDEL first: LOOK mends what only came so far."""
        entries: dict[str, list[str]] = {}
        for delivery in deliveries:
            queue, level, name, _ = delivery.token
            entries.setdefault(f"{self._options.base}q{level}:{queue}", []).append(name)
        commands: list[Command] = []
        for key, names in entries.items():
            commands += [("XDEL", key, *names), ("XACK", key, GROUP, *names)]
        return commands

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        # The count goes on from where it was before this delivery.
        items = [(*d.token, d.deliveries - 1) for d in deliveries]
        self._settle(RELEASE, deliveries, items, delay=max(0, round(delay * 1000)))

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        cap = self._options.dead_letters
        self._settle(REJECT, deliveries, [d.token for d in deliveries], reason=reason, cap=cap)

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        since = time.monotonic() - max(0.0, self.lease - seconds)
        extended = self._run(EXTEND, [d.token for d in deliveries], ms=round(seconds * 1000))
        if extended == len(deliveries):
            self._unsettled |= {d.token: (d, since) for d in deliveries if d.token in self._unsettled}

    @property
    def name(self) -> str:
        """The consumer's name in its groups."""
        return self._name

    def _settle(
        self, sha: bytes, deliveries: Sequence[Delivery], items: Sequence[tuple[str | int, ...]], **more: str | int
    ) -> None:
        self._run(sha, items, **more)
        self.settled(deliveries)

    def _run(self, sha: bytes, items: Sequence[tuple[str | int, ...]], **more: str | int) -> int:
        """How many of them were this consumer's."""
        if not items:
            return 0
        arguments = {"me": self._name, "items": items, **more}
        return int(self._client.one(*script(sha, self._options.base, arguments)))

    def settled(self, deliveries: Sequence[Delivery]) -> None:
        """These no longer count towards the prefetch."""
        for delivery in deliveries:
            self._unsettled.pop(delivery.token, None)
        if self._full:  # set before it looks for room: either it sees the room, or this sees that it waits
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.wake()
        # The receiving thread gives back what it gets from now on; its link is closed when it has left.
        left = self._receiving.acquire(timeout=5.0)
        try:
            self.release_many([delivery for delivery, _ in list(self._unsettled.values())])
            self._client.one(*script(LEAVE, self._options.base, {"me": self._name, "queues": self._served}))
        except BrokerError:
            pass  # the server is away: what is unsettled comes back when its lease ends
        finally:
            self._line.close()
            if left:
                self._receiving.release()
