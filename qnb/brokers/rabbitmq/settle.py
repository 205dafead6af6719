"""Settling what a RabbitMQ consumer holds: acks, copies that go back, and leases that lapse."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence

from qnb.brokers.base import Delivery
from qnb.brokers.rabbitmq.admin import Admin
from qnb.brokers.rabbitmq.channel import Answer, Channel, ChannelClosed, ConnectionLost
from qnb.brokers.rabbitmq.held import HELD, Held
from qnb.brokers.rabbitmq.link import Link
from qnb.brokers.rabbitmq.publish import Publisher
from qnb.brokers.rabbitmq.taps import COUNT_HEADER, Subscription, Taps
from qnb.brokers.rabbitmq.wire import Content, Properties, encode_ack, encode_nack
from qnb.errors import BrokerError

REASON_HEADER = "qnb-reason"
_ANSWER_SECONDS = 10.0


class Settler(Taps):
    """The second half of a consumer.

    The server closes the channel of who holds a message for longer than its consumer_timeout. A message that is held
    for half of that is exchanged for a copy, in a queue of this consumer alone; should it die, the copy goes on from
    there.
    """

    def __init__(self, link: Link, admin: Admin, publisher: Publisher, queues: Sequence[str]) -> None:
        super().__init__(link, admin, queues)
        self._publisher = publisher
        self._name = secrets.token_hex(4)
        self._timer: object = None
        self._timer_at = 0.0

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._drop(self._ledger.settle(deliveries, time.monotonic(), remember=True))
            self._changed.notify_all()

    def _drop(self, settled: Sequence[Held]) -> None:
        """Ack on the server; what a broken connection took away is acked should it come back."""
        channel = self._channel
        if channel is None:
            return
        here = [held for held in settled if held.channel is channel]
        tags = self._ledger.acks([held.tag for held in here])
        if tags:
            self._link.post(lambda: self._write_acks(channel, here, tags))

    def _write_acks(self, channel: Channel, settled: Sequence[Held], tags: Sequence[tuple[int, bool]]) -> None:
        """In the link's thread. An ack that would make a bell ring waits for somebody to listen."""
        if channel is not self._channel:
            return
        rang = self._brought({held.tag for held in settled})
        if rang and len(settled) == 1:
            self._owe(rang[0], settled[0])
        else:
            self._unhang([*rang, *self._owed])  # an ack of all up to a tag is one of what is owed, too
            channel.write(b"".join(encode_ack(channel.number, tag, multiple) for tag, multiple in tags))

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
            subscription = self._subscribed[label] = Subscription(held.queue, held.urgent, 1)
            subscription.takes_over = held
            channel.get(name, label, answer.put)

        self._link.post(take)
        with contextlib.suppress(
            ConnectionLost, ChannelClosed
        ):  # then the copy is delivered to someone, as the old one
            answer.get(_ANSWER_SECONDS)

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
            lapsed = self._ledger.lapsed(time.monotonic())
            self._unhang(self._brought({held.tag for held in lapsed}))
            for held in lapsed:
                if held.channel is not None and held.channel is self._channel:
                    self._channel.write(encode_nack(self._channel.number, held.tag))
            self._changed.notify_all()
        self._set_timer()
