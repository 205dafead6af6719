"""Taking messages from RabbitMQ on leases.

The server's own lease is the connection: what a client holds goes back when that breaks, and counts. A lease that a
living client lets lapse is given back by the link's thread.

A message is asked for only when somebody waits for it, since what a subscription brings beyond that would wait here
for nobody: so a consumer asks how many there are, and takes as many as are wanted. Where there are none it hangs a
bell: a subscription for one message.

What is held when the connection breaks comes back to its queue; when it comes back to the same consumer within the
lease, that one goes on holding it, and is not given it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from pika import spec

from qnb.brokers.base import Delivery
from qnb.brokers.rabbitmq.admin import NOT_FOUND, Admin
from qnb.brokers.rabbitmq.channel import Answer, ChannelClosed, ConnectionLost
from qnb.brokers.rabbitmq.link import Link
from qnb.brokers.rabbitmq.publish import Publisher
from qnb.brokers.rabbitmq.settle import Settler
from qnb.brokers.rabbitmq.taps import Place
from qnb.errors import BrokerError

_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_FEW = 8
# What came in excess waits so long for the next receive_many before it goes back, and so long a bell hangs.
IDLE_SECONDS = 0.05
_STRAY_SECONDS = 1.0  # what rang when nobody listened any more waits so long for him to come back
# So long a silent bell is believed.
_TRUST_SECONDS = 5.0


class RabbitConsumer(Settler):
    """See Consumer of the ports."""

    def __init__(
        self, link: Link, admin: Admin, publisher: Publisher, queues: Sequence[str], prefetch: int, lease: float | None
    ) -> None:
        super().__init__(link, admin, publisher, queues)
        self._prefetch, self._forced = max(1, prefetch), lease
        self._turn = 0
        self._woken = self._listening = False
        self._idle_since = 0.0
        self._unhanging: object = None
        self._counted = 0.0
        self.lease = lease or 0.0
        self._prepare()
        link.add(self)

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        with self._receiving:
            while True:
                room = min(limit, self._prefetch - len(self._ledger.held))
                if room > 0:
                    self._gather(room, deadline)
                    got = self._hand_out(room)
                    if got:
                        return got
                else:
                    self._wait(deadline, lambda: len(self._ledger.held) < self._prefetch)
                if self._closed or self._woken or time.monotonic() >= deadline:
                    self._woken = False
                    return []

    def _wait(self, deadline: float, enough: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: enough() or self._closed or self._woken, max(0.0, deadline - time.monotonic())
            )

    def _prepare(self) -> None:
        for queue in self._queues:
            self._admin.ensure(queue)
        self.lease = self._forced or min((self._admin.lease(queue) for queue in self._queues), default=self.lease)

    def _gather(self, room: int, deadline: float) -> None:
        """Get what is there into the buffer, the companions' first; when there is nothing, stand by until it comes."""
        if self._channel is None:
            self._wait(deadline, lambda: self._channel is not None or self._error is not None)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._channel is None:
            return
        try:
            self._prepare()
            self._turn += 1
            turn = self._turn % max(1, len(self._queues))
            queues = self._queues[turn:] + self._queues[:turn]
            places = [(queue, urgent) for urgent in (True, False) for queue in queues]
            for place, count in self._counts(places).items():
                missing = room - len(self._ledger.buffer)
                if missing > 0 and count:
                    self._fetch(*place, min(missing, count), count)
            if not self._ledger.buffer and time.monotonic() < deadline:
                self._stand_by(places, deadline)
        except ConnectionLost:
            pass  # the loop waits for the next channel
        except ChannelClosed as error:
            if error.code != NOT_FOUND:
                raise error.translate(self._link.target.place) from error

    def _counts(self, places: Sequence[Place]) -> dict[Place, int]:
        """How many messages wait in each; where a bell can ring there are none, or the bell is deaf."""
        trust = time.monotonic() - self._counted < _TRUST_SECONDS
        if trust:
            places = [place for place in places if not self._hears(place)]
        else:
            self._counted = time.monotonic()
        answers = [Answer() for _ in places]

        def ask() -> None:
            channel = self._channel
            for (queue, urgent), answer in zip(places, answers, strict=True):
                if channel is None:
                    answer.put(ConnectionLost("no channel"))
                else:
                    channel.ask(spec.Queue.Declare(0, self._server_name(queue, urgent), True), answer.put)

        if places:
            self._link.post(ask)
        counts = [answer.get(_ANSWER_SECONDS).message_count for answer in answers]
        self._crowded.difference_update(places)
        found = dict(zip(places, counts, strict=True))
        if many := [place for place, n in found.items() if n and (place in self._bells or place in self._standing)]:
            self._link.post(lambda: self._crowd(many))
        return found

    def _fetch(self, queue: str, urgent: bool, wanted: int, there: int) -> None:
        """Take up to so many messages that are there now."""
        answer = Answer()
        classic = urgent or self._classic

        def start() -> None:
            channel = self._channel
            if channel is None:
                answer.put(ConnectionLost("no channel"))
            elif queue not in self._queues:
                answer.put(None)  # not since a moment ago
            elif classic:
                self._cancel(channel, self._subscribe(channel, queue, urgent, wanted), answer.put)
            elif wanted < _FEW:
                self._get(channel, queue, wanted, answer.put)
            else:
                # Not all that is there, lest others be faster and the subscription remain open.
                self._drain(
                    channel, self._subscribe(channel, queue, urgent, min(wanted, max(_FEW, there // 2))), answer
                )

        self._link.post(start)
        answer.get(_ANSWER_SECONDS)

    def _stand_by(self, places: Sequence[Place], deadline: float) -> None:
        """Wait for a message from any of these. Bells hang on for a moment, for whoever comes back at once."""
        channel = self._channel

        def start() -> None:
            if channel is not None and channel is self._channel:
                for place in places:
                    if place not in self._bells and place[0] in self._queues:
                        self._hang(channel, place)

        self._link.post(start)
        until = min(deadline, self._counted + _TRUST_SECONDS)
        self._listening = True
        try:
            self._wait(until, lambda: bool(self._ledger.buffer) or channel is not self._channel or self._stale)
        finally:
            self._listening = self._stale = False
            self._idle_since = time.monotonic()
            self._link.post(self._unhang_soon)

    def _hand_out(self, room: int) -> list[Delivery]:
        now = time.monotonic()
        with self._changed:
            if self._closed:
                return []
            strays = self._ledger.strays(self._queues)
            taken = self._ledger.take(room, now + self.lease)
            left = bool(self._ledger.buffer)
        doubtful = [held for held in taken if held.uncounted]
        if doubtful or strays:
            self._settle_by_copy([*doubtful, *strays])
            taken = [held for held in taken if not held.uncounted]
        if taken and (self._timer is None or self._timer_at > now + self.lease):
            self._link.post(self._set_timer)
        if left:
            self._link.post(lambda: self._later(IDLE_SECONDS))
        return [Delivery(held.queue, held.body, held.deliveries, held) for held in taken]

    def take_from(self, queues: Sequence[str]) -> None:
        with self._changed:
            self._queues = list(dict.fromkeys(queues))
            self._stale = True
            self._changed.notify_all()
        answer = Answer()

        def stop() -> None:
            gone = [place for place in (*self._bells, *self._standing) if place[0] not in self._queues]
            self._unhang(gone, answer)

        self._link.post(stop)
        with contextlib.suppress(ConnectionLost, ChannelClosed):  # then nothing is subscribed
            answer.get(_ANSWER_SECONDS)
        with self._changed:
            strays = self._ledger.strays(self._queues)
        self._settle_by_copy(strays)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        left = self._receiving.acquire(timeout=5.0)
        answer = Answer()
        self._link.post(lambda: self._unhang([*self._bells, *self._standing], answer))
        try:
            with contextlib.suppress(ConnectionLost, ChannelClosed):
                answer.get(_CLOSE_SECONDS)
            with self._changed:
                rest = self._ledger.empty(time.monotonic())
            if self._link.connection is not None:
                self._settle_by_copy(rest, patience=_CLOSE_SECONDS)
        except BrokerError:
            pass  # the server is away, and has it all back already
        finally:
            self._link.remove(self)
            self._link.post(lambda: self._channel.close() if self._channel else None)
            if left:
                self._receiving.release()

    def _unhang_soon(self) -> None:
        if (self._bells or self._standing) and self._unhanging is None:
            self._unhanging = self._link.later(IDLE_SECONDS, self._unhang_idle)

    def _unhang_idle(self) -> None:
        """Take the bells down, unless somebody listens again."""
        self._unhanging = None
        rest = self._idle_since + IDLE_SECONDS - time.monotonic()
        if self._listening:
            return  # who listens now will come by when he leaves
        if rest > 0.001:
            self._unhanging = self._link.later(rest, self._unhang_idle)
        else:
            self._unhang([*self._bells, *self._standing])
            self._later(_STRAY_SECONDS)

    def _later(self, seconds: float) -> None:
        """In a while, give back what is here, if anything is, unless somebody takes it by then."""

        def look() -> None:
            if self._ledger.buffer and not self._closed:
                threading.Thread(target=self._give_back, name="qnb-give-back", daemon=True).start()

        self._link.later(seconds, look)

    def _give_back(self) -> None:
        if not self._receiving.acquire(blocking=False):
            return  # somebody takes it
        try:
            with self._changed:
                strays = self._ledger.strays(())
            if strays and not self._closed:
                self._settle_by_copy(strays)
        finally:
            self._receiving.release()
