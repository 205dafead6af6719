"""Taking messages from RabbitMQ on leases.

The server's own lease is the connection: what a client holds goes back when that breaks, and counts. A lease that a
living client lets lapse is given back by the link's thread.

A message is asked for only when somebody waits for it, since what a subscription brings beyond that would wait here
for nobody: so a consumer asks how many there are, and takes as many as are wanted. Where there are none it hangs a
bell: a subscription for one message. A quorum queue counts what was on its way to a subscription that is cancelled as
a failed delivery, so a subscription is cancelled when it has brought all that it was for.

The server closes the channel of who holds a message for longer than its consumer_timeout. A message that is held for
half of that is exchanged for a copy, in a queue of this consumer alone; should the consumer die, it goes on from there.

What is held when the connection breaks comes back to its queue; when it comes back to the same consumer within the
lease, that one goes on holding it, and is not given it again.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pika import spec

from qnb.brokers.base import Delivery
from qnb.brokers.rabbitmq_admin import NOT_FOUND, Admin
from qnb.brokers.rabbitmq_held import GONE, HELD, Held, Ledger
from qnb.brokers.rabbitmq_link import (
    Answer,
    Channel,
    ChannelClosed,
    Connection,
    ConnectionLost,
    Done,
    Link,
    Owner,
    User,
)
from qnb.brokers.rabbitmq_publish import Publisher
from qnb.brokers.rabbitmq_wire import Arrived, Content, Properties, encode_ack, encode_nack
from qnb.errors import BrokerError, QnbError

_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
# What came in excess waits so long for the next receive_many before it goes back, and so long a bell hangs.
_IDLE_SECONDS = 0.05
_DRAIN_SECONDS = 0.005
# So long a silent bell is believed.
_TRUST_SECONDS = 5.0
# Else the server, when a queue is removed and made again, subscribes anew by itself, and drops what a quorum one sends.
# It has no such argument for quorum queues: who is told of the companion looks after both.
_TOLD = {"x-cancel-on-ha-failover": True}
_FEW = 8
COUNT_HEADER, REASON_HEADER = "qnb-failed", "qnb-reason"


class _Subscription:
    """For `left` messages of a queue or its companion. To cancel it before it is confirmed ends the connection."""

    def __init__(self, queue: str, urgent: bool, left: int) -> None:
        self.queue, self.urgent, self.left = queue, urgent, left
        self.confirmed = False
        self.takes_over: Held | None = None
        self.wanted_gone = False
        self.ending: list[Done] = []  # who waits for its end


class RabbitConsumer(Owner, User):
    """See Consumer of the ports."""

    def __init__(
        self, link: Link, admin: Admin, publisher: Publisher, queues: Sequence[str], prefetch: int, lease: float | None
    ) -> None:
        self._link, self._admin, self._publisher = link, admin, publisher
        self._queues = list(dict.fromkeys(queues))
        self._name = secrets.token_hex(4)
        self._classic = admin.options.queue_type == "classic"
        self._prefetch, self._forced = max(1, prefetch), lease
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._ledger = Ledger()
        self._channel: Channel | None = None
        self._error: QnbError | None = None
        self._subscribed: dict[str, _Subscription] = {}  # by consumer tag
        self._bells: dict[tuple[str, bool], str] = {}  # consumer tags of those that have not rung
        self._tags = itertools.count(1)
        self._turn = 0
        self._woken = self._closed = self._stale = False
        self._idle_since = self._counted = 0.0
        self._unhanging: object = None
        self._timer: object = None
        self._timer_at = 0.0
        self.lease = lease or 0.0
        self._prepare()
        link.add(self)

    # ------------------------------------------------------------ receiving

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

    def _counts(self, places: Sequence[tuple[str, bool]]) -> dict[tuple[str, bool], int]:
        """How many messages wait in each; where a bell hangs there are none, or the bell is deaf."""
        trust = time.monotonic() - self._counted < _TRUST_SECONDS
        if trust:
            places = [place for place in places if place not in self._bells]
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
        found = dict(zip(places, counts, strict=True))
        deaf = [place[0] for place, count in found.items() if count and place in self._bells]
        if deaf:
            self._link.post(lambda: self._unhang(deaf))
        return found

    def _server_name(self, queue: str, urgent: bool) -> str:
        return self._admin.names.urgent(queue) if urgent else self._admin.names.queue(queue)

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

    def _stand_by(self, places: Sequence[tuple[str, bool]], deadline: float) -> None:
        """Wait for a message from any of these. Bells that do not ring hang on, for whoever comes back at once."""
        channel = self._channel

        def start() -> None:
            if channel is not None and channel is self._channel:
                for place in places:
                    if place not in self._bells and place[0] in self._queues:
                        self._bells[place] = self._subscribe(channel, *place, 1)

        self._link.post(start)
        until = min(deadline, self._counted + _TRUST_SECONDS)
        self._wait(until, lambda: bool(self._ledger.buffer) or channel is not self._channel or self._stale)
        self._stale = False
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
            self._link.post(lambda: self._later(_IDLE_SECONDS))
        return [Delivery(held.queue, held.body, held.deliveries, held) for held in taken]

    def take_from(self, queues: Sequence[str]) -> None:
        with self._changed:
            self._queues = list(dict.fromkeys(queues))
            self._stale = True
            self._changed.notify_all()
        answer = Answer()

        def stop() -> None:
            others = [tag for (queue, _), tag in self._bells.items() if queue not in self._queues]
            self._bells = {place: tag for place, tag in self._bells.items() if place[0] in self._queues}
            self._cancel_all(self._channel, others, answer)

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

    # ------------------------------------------------------------ settling

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._drop(self._ledger.settle(deliveries, time.monotonic(), remember=True))
            self._changed.notify_all()

    def _drop(self, settled: Sequence[Held]) -> None:
        """Ack on the server; what a broken connection took away is acked should it come back."""
        channel = self._channel
        if channel is None:
            return
        tags = self._ledger.acks([held.tag for held in settled if held.channel is channel])
        if tags:
            data = b"".join(encode_ack(channel.number, tag, multiple) for tag, multiple in tags)
            self._link.post(lambda: channel.write(data))

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        # By a copy that says how often it has failed: a nack would count as one more.
        with self._changed:
            settled = self._ledger.settle(deliveries, time.monotonic())
        self._settle_by_copy(settled, delay)

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        with self._changed:
            settled = self._ledger.settle(deliveries, time.monotonic())
        reason = reason.encode()[:20_000].decode("utf-8", "ignore")
        here = [held for held in settled if held.channel is not None]
        places = {queue: self._admin.dead_queue(queue) for queue in {held.queue for held in here}}
        contents = [
            Content("", places[held.queue], held.body, Properties(held.id, {REASON_HEADER: reason})) for held in here
        ]
        self._exchange(here, contents)

    def _settle_by_copy(self, settled: Sequence[Held], delay: float = 0.0, patience: float | None = None) -> None:
        here = [held for held in settled if held.channel is not None]  # others are back in their queues already
        contents = []
        for held in here:
            name = self._admin.names.urgent(held.queue) if held.urgent else self._admin.names.queue(held.queue)
            if delay > 0:
                name = self._admin.late_queue(held.queue, delay, held.urgent)
            failed = held.deliveries - 1
            headers = {COUNT_HEADER: failed} if failed else {}
            contents.append(Content("", name, held.body, Properties(self._publisher.new_id(), headers, held.priority)))
        self._exchange(here, contents, patience)

    def _exchange(self, settled: Sequence[Held], contents: Sequence[Content], patience: float | None = None) -> None:
        """Publish what stands for them; ack them once that is confirmed."""
        try:
            if contents:
                unsent = self._publisher.send(contents, self._admin.options.patience if patience is None else patience)
                if unsent.refused:
                    raise BrokerError(f"the RabbitMQ at {self._link.target.place} refuses to take messages back")
                # A queue that was removed meanwhile wants none of its messages.
        except BaseException:
            with self._changed:
                self._ledger.restore(settled)
            raise
        with self._changed:
            self._drop(settled)
            self._changed.notify_all()

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        now = time.monotonic()
        with self._changed:
            self._ledger.extend(deliveries, now, seconds)
            sooner = self._timer_at > now + seconds
        if sooner:
            self._link.post(self._set_timer)
        old = now - self._admin.options.consumer_timeout / 2
        for delivery in deliveries:
            held: Held = delivery.token
            if held.since < old and held.state == HELD and held.channel is not None:
                self._exchange_for_copy(held)

    def _exchange_for_copy(self, held: Held) -> None:
        """See above on consumer_timeout. The copy counts this delivery as failed: it is seen by others only then."""
        name = self._admin.transfer_queue(held.queue, held.urgent, self._name)
        properties = Properties(self._publisher.new_id(), {COUNT_HEADER: held.deliveries}, held.priority)
        if self._publisher.send([Content("", name, held.body, properties)], self._admin.options.patience):
            return
        answer = Answer()

        def take() -> None:
            channel = self._channel
            if channel is None:
                answer.put(ConnectionLost("no channel"))
                return
            label = f"g{next(self._tags)}"
            subscription = self._subscribed[label] = _Subscription(held.queue, held.urgent, 1)
            subscription.takes_over = held
            channel.get(name, label, answer.put)

        self._link.post(take)
        with contextlib.suppress(
            ConnectionLost, ChannelClosed
        ):  # then the copy is delivered to someone, as the old one
            answer.get(_ANSWER_SECONDS)

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        left = self._receiving.acquire(timeout=5.0)
        answer = Answer()
        self._link.post(lambda: self._cancel_all(self._channel, list(self._bells.values()), answer))
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

    # ------------------------------------------------------------ in the link's thread

    def link_up(self, connection: Connection) -> None:
        with self._changed:
            self._channel = Channel(connection, self)
            self._changed.notify_all()

    def _get(self, channel: Channel, queue: str, count: int, done: Done) -> None:
        """Take so many messages one by one: slower than a subscription, and exact."""
        label = f"g{next(self._tags)}"
        self._subscribed[label] = _Subscription(queue, False, count)
        left = count

        def got(reply: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._subscribed.pop(label, None)
                done(reply)

        for _ in range(count):
            channel.get(self._server_name(queue, False), label, got)

    def _drain(self, channel: Channel, tag: str, answer: Answer) -> None:
        """The answer comes with the last message that a subscription was for, or a moment after the one before."""
        subscription = self._subscribed[tag]
        before = subscription.left

        def look() -> None:
            nonlocal before
            if self._subscribed.get(tag) is not subscription:
                return
            if subscription.left < before or not subscription.confirmed:
                before = subscription.left
                self._link.later(_DRAIN_SECONDS, look)
            else:  # somebody else was faster
                self._cancel(channel, tag, lambda _: None)

        subscription.ending.append(answer.put)
        self._link.later(_DRAIN_SECONDS, look)

    def _unhang_soon(self) -> None:
        if self._bells and self._unhanging is None:
            self._unhanging = self._link.later(_IDLE_SECONDS, self._unhang_idle)

    def _unhang_idle(self) -> None:
        """Take the bells down, unless somebody listens again."""
        self._unhanging = None
        rest = self._idle_since + _IDLE_SECONDS - time.monotonic()
        if self._receiving.locked():
            return  # who listens now will come by when he leaves
        if rest > 0.001:
            self._unhanging = self._link.later(rest, self._unhang_idle)
        else:
            self._unhang([queue for queue, _ in self._bells])

    def _unhang(self, queues: Sequence[str]) -> None:
        """Take the bells of these queues down."""
        for place in [place for place in self._bells if place[0] in queues]:
            tag = self._bells.pop(place)
            if self._channel is not None:
                self._cancel(self._channel, tag, lambda _: None)

    def _subscribe(self, channel: Channel, queue: str, urgent: bool, count: int) -> str:
        tag = f"c{next(self._tags)}"
        name = self._server_name(queue, urgent)
        count = min(count, 65535)
        subscription = self._subscribed[tag] = _Subscription(queue, urgent, count)

        def confirmed(reply: Any) -> None:
            subscription.confirmed = True
            if subscription.wanted_gone:
                self._end(channel, tag, reply)

        channel.ask(spec.Basic.Qos(0, count, False), lambda _: None)
        arguments = _TOLD if urgent or self._classic else {}
        channel.ask(spec.Basic.Consume(0, name, tag, False, False, False, False, arguments), confirmed)
        return tag

    def _cancel(self, channel: Channel, tag: str, done: Done) -> None:
        """End a subscription; `done` when all that it brought is here."""
        subscription = self._subscribed.get(tag)
        if subscription is None:
            done(None)
            return
        subscription.ending.append(done)
        if subscription.wanted_gone:
            return
        subscription.wanted_gone = True
        if subscription.confirmed:
            self._end(channel, tag, None)

    def _cancel_all(self, channel: Channel | None, tags: Sequence[str], answer: Answer) -> None:
        """End these subscriptions; the answer comes when all that they brought is here."""
        if channel is None or channel is not self._channel:
            answer.put(ConnectionLost("no channel"))
            return
        left = set(tags)

        def ended(tag: str, reply: Any) -> None:
            left.discard(tag)
            if not left or isinstance(reply, Exception):
                answer.put(reply)

        for tag in tags:
            self._cancel(channel, tag, partial(ended, tag))
        if not tags:
            answer.put(None)

    def _end(self, channel: Channel, tag: str, reply: Any) -> None:
        def over(reply: Any) -> None:
            subscription = self._subscribed.pop(tag, None)
            for done in subscription.ending if subscription else ():
                done(reply)

        if isinstance(reply, Exception):
            over(reply)
        else:
            channel.ask(spec.Basic.Cancel(tag, False), over)

    def arrived(self, arrived: Arrived, properties: Properties, body: bytes) -> None:
        subscription = self._subscribed[arrived.consumer]
        queue, urgent = subscription.queue, subscription.urgent
        headers = properties.headers
        counted = headers.get("x-delivery-count")
        failed = int(headers.get(COUNT_HEADER, 0)) + int(counted or arrived.redelivered)
        held = Held(queue, urgent, properties.id, body, 1 + failed, properties.priority)
        held.tag, held.channel = arrived.tag, self._channel
        held.uncounted = arrived.redelivered and counted is None
        with self._changed:
            if subscription.takes_over is not None:
                self._ack(self._ledger.move(subscription.takes_over, held))
            elif not (arrived.redelivered and self._ledger.known(held, time.monotonic())):
                self._ledger.add(held)
                self._changed.notify_all()
            elif held.state == GONE:
                self._ack(arrived.tag)
        self._count_down(arrived.consumer, subscription)

    def _ack(self, tag: int) -> None:
        if self._channel is not None:
            self._channel.write(encode_ack(self._channel.number, tag, False))

    def _count_down(self, tag: str, subscription: _Subscription) -> None:
        """End a subscription that has brought all it was for; acks would make it bring more."""
        subscription.left -= 1
        if subscription.left or self._channel is None or tag.startswith("g"):
            return
        if self._bells.get((subscription.queue, subscription.urgent)) == tag:
            del self._bells[subscription.queue, subscription.urgent]
        for done in subscription.ending:
            done(None)
        subscription.ending.clear()
        self._cancel(self._channel, tag, lambda _: None)

    def cancelled(self, consumer: str) -> None:
        ended = self._subscribed.pop(consumer, None)
        with self._changed:
            if ended is not None:
                self._bells.pop((ended.queue, ended.urgent), None)
                self._unhang([ended.queue])
                self._admin.forget(ended.queue)
            self._stale = True
            self._changed.notify_all()

    def closed(self, error: Exception) -> None:
        if isinstance(error, ChannelClosed) and error.code == NOT_FOUND:
            for queue in self._queues:
                self._admin.forget(queue)
        self._bells.clear()
        subscribed, self._subscribed = self._subscribed, {}
        for subscription in subscribed.values():
            for done in subscription.ending:
                done(error)
        with self._changed:
            self._channel = None
            self._ledger.lose()
            if isinstance(error, ChannelClosed) and error.code != NOT_FOUND and "timed out" not in error.text:
                self._error = error.translate(self._link.target.place)
            self._changed.notify_all()
        if isinstance(error, ChannelClosed) and not self._closed and self._link.connection is not None:
            self.link_up(self._link.connection)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._link.forget(self._timer)
            self._timer = None
        with self._changed:
            soonest = self._ledger.soonest()
        if soonest is not None and not self._closed:
            self._timer_at = soonest
            self._timer = self._link.later(max(0.005, soonest - time.monotonic()), self._lapse)

    def _lapse(self) -> None:
        self._timer = None
        with self._changed:
            for held in self._ledger.lapsed(time.monotonic()):
                if held.channel is not None and held.channel is self._channel:
                    self._channel.write(encode_nack(self._channel.number, held.tag))
            self._changed.notify_all()
        self._set_timer()

    def _later(self, seconds: float) -> None:
        """In a while, give back what came in excess, unless somebody takes it by then."""
        self._link.later(seconds, lambda: threading.Thread(target=self._give_back, daemon=True).start())

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
