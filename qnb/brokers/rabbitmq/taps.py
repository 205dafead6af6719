"""Subscriptions of a consumer to its queues: for as many messages as are wanted, and bells. In the link's thread.

A quorum queue counts what was on its way to a subscription that is cancelled as a failed delivery, so a subscription is
cancelled when it has brought all that it was for. A subscription for one message, where there is none yet, is a bell.

To subscribe to a quorum queue, and to cancel that, is an entry in its log, written to disk. So a bell that has rung
stays for a while: once its message is acked it can ring again. It is to ring only while somebody listens, so the ack
waits for the next receive_many; if none comes at once, the bell goes first. Where others wait behind its message, it
gives way to a subscription for all of them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

from pika import spec

from qnb.brokers.rabbitmq.admin import NOT_FOUND, Admin
from qnb.brokers.rabbitmq.channel import Answer, Channel, ChannelClosed, ConnectionLost, Done, Owner
from qnb.brokers.rabbitmq.held import GONE, Held, Ledger
from qnb.brokers.rabbitmq.link import Connection, Link, User
from qnb.brokers.rabbitmq.wire import Arrived, Properties, encode_ack
from qnb.errors import QnbError

COUNT_HEADER = "qnb-failed"
# What a subscription is for has come, or somebody else has it, when nothing came for so long: twice what the server
# took to confirm the subscription, within these bounds. A server far away, or a busy one, takes longer; what it sends
# too late goes back behind the others, and counts as delivered once more.
_DRAIN_SECONDS = (0.05, 1.0)
_OWED_SECONDS = 0.005  # an ack waits so long for the next receive_many
_DEAF_SECONDS = 1.0  # a bell that has not rung for so long where messages wait
# Else the server, when a queue is removed and made again, subscribes anew by itself, and drops what a quorum one sends.
# It has no such argument for quorum queues: who is told of the companion looks after both.
_TOLD = {"x-cancel-on-ha-failover": True}


Place = tuple[str, bool]  # a queue, or its companion for what is urgent


class Subscription:
    """For `left` messages of a queue or its companion. To cancel it before it is confirmed ends the connection."""

    def __init__(self, queue: str, urgent: bool, left: int) -> None:
        self.queue, self.urgent, self.left = queue, urgent, left
        self.confirmed = False
        self.asked_at, self.pause = time.monotonic(), _DRAIN_SECONDS[0]
        self.takes_over: Held | None = None
        self.wanted_gone = False
        self.ending: list[Done] = []  # who waits for its end


class Taps(Owner, User):
    """The channel of a consumer, and what it brings into the ledger. `_changed` guards the ledger and tells of news."""

    def __init__(self, link: Link, admin: Admin, queues: Sequence[str]) -> None:
        self._link, self._admin = link, admin
        self._queues = list(dict.fromkeys(queues))
        self._classic = admin.options.queue_type == "classic"
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._ledger = Ledger()
        self._channel: Channel | None = None
        self._error: QnbError | None = None
        self._subscribed: dict[str, Subscription] = {}  # by consumer tag
        self._bells: dict[Place, str] = {}  # consumer tags of those that have not rung
        self._standing: dict[Place, tuple[str, int]] = {}  # those that have, and the tags of their messages
        self._owed: dict[Place, tuple[Held, float]] = {}  # messages of these that are to be acked, since when
        self._paying: object = None
        self._crowded: set[Place] = set()  # where others wait behind
        self._tags = itertools.count(1)
        self._closed = self._stale = self._news = False

    def link_up(self, connection: Connection) -> None:
        with self._changed:
            self._channel = Channel(connection, self)
            self._changed.notify_all()

    def _server_name(self, queue: str, urgent: bool) -> str:
        return self._admin.names.urgent(queue) if urgent else self._admin.names.queue(queue)

    def _get(self, channel: Channel, queue: str, count: int, done: Done) -> None:
        """Take so many messages one by one: slower than a subscription, and exact."""
        label = f"g{next(self._tags)}"
        self._subscribed[label] = Subscription(queue, False, count)
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
                self._link.later(subscription.pause, look)
            else:  # somebody else was faster
                self._cancel(channel, tag, lambda _: None)

        subscription.ending.append(answer.put)
        self._link.later(subscription.pause, look)

    def _hang(self, channel: Channel, place: Place) -> None:
        """Have a bell there: the one that stays, when it can ring."""
        label, tag = self._standing.pop(place, ("", 0))
        if label and not self._ledger.has(tag):
            self._subscribed[label].left, self._subscribed[label].asked_at = 1, time.monotonic()
            self._pay([place])
            self._look_behind(channel, place)
        else:
            self._cancel(channel, label, lambda _: None)
            label = self._subscribe(channel, *place, 1)
        self._bells[place] = label

    def _look_behind(self, channel: Channel, place: Place) -> None:
        """A bell brings one message after the other: where there are many, they are better fetched, all at once."""

        def looked(reply: Any) -> None:
            if not isinstance(reply, Exception) and reply.message_count:
                with self._changed:
                    self._crowded.add(place)
                    self._stale = True
                    self._changed.notify_all()

        channel.ask(spec.Queue.Declare(0, self._server_name(*place), True), looked)

    def _crowd(self, places: Sequence[Place]) -> None:
        """Many wait there. A bell gives way, but only once it has brought its message: what is on its way to one that
        is cancelled goes back behind the others, and counts as delivered once more."""
        for place in places:
            bell = self._subscribed.get(self._bells.get(place, ""))
            if bell is not None and time.monotonic() - bell.asked_at < _DEAF_SECONDS:
                self._crowded.add(place)
            else:
                self._unhang([place])

    def _hears(self, place: Place) -> bool:
        """Whether a bell is there that can ring, and none wait behind."""
        if place in self._crowded:
            return False
        label, tag = self._standing.get(place, ("", 0))
        return place in self._bells or (bool(label) and not self._ledger.has(tag))

    def _brought(self, tags: Container[int]) -> list[Place]:
        """Where the bells stay that have brought these messages."""
        return [place for place, (_, tag) in self._standing.items() if tag in tags]

    def _unhang(self, places: Sequence[Place], answer: Answer | None = None) -> None:
        """Take the bells down there; the answer comes when all that they brought is here."""
        labels = [self._bells.pop(place) for place in places if place in self._bells]
        labels += [self._standing.pop(place)[0] for place in places if place in self._standing]
        self._cancel_all(self._channel, labels, answer or Answer())
        self._pay(places)

    def _owe(self, place: Place, held: Held) -> None:
        """This is to be acked, but the bell that brought it is not to ring when nobody listens."""
        self._owed[place] = held, time.monotonic()
        if self._paying is None:
            self._paying = self._link.later(_OWED_SECONDS, self._pay_old)

    def _pay_old(self) -> None:
        self._paying = None
        old = time.monotonic() - 0.8 * _OWED_SECONDS
        self._unhang([place for place, (_, since) in self._owed.items() if since <= old])
        if self._owed:
            self._paying = self._link.later(_OWED_SECONDS, self._pay_old)

    def _pay(self, places: Sequence[Place]) -> None:
        """Ack what the bells there have brought."""
        for place in places:
            held, _ = self._owed.pop(place, (None, 0.0))
            if held is not None and self._channel is not None:
                self._channel.write(encode_ack(self._channel.number, held.tag, False))

    def _subscribe(self, channel: Channel, queue: str, urgent: bool, count: int) -> str:
        tag = f"c{next(self._tags)}"
        name = self._server_name(queue, urgent)
        count = min(count, 65535)
        subscription = self._subscribed[tag] = Subscription(queue, urgent, count)

        def confirmed(reply: Any) -> None:
            subscription.confirmed = True
            least, most = _DRAIN_SECONDS
            subscription.pause = min(max(least, 2 * (time.monotonic() - subscription.asked_at)), most)
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
                self._news = True
            else:
                self._stale = self._news = True  # whoever waits needs another bell
                if held.state == GONE:
                    self._ack(arrived.tag)
        self._count_down(arrived.consumer, subscription, arrived.tag)

    def told(self) -> None:
        if self._news:
            self._news = False
            with self._changed:
                self._changed.notify_all()

    def _ack(self, tag: int) -> None:
        self._unhang(self._brought([tag]))
        if self._channel is not None:
            self._channel.write(encode_ack(self._channel.number, tag, False))

    def _count_down(self, label: str, subscription: Subscription, tag: int) -> None:
        """End a subscription that has brought all it was for, since acks would make it bring more. A bell stays."""
        subscription.left -= 1
        if subscription.left > 0 or self._channel is None or label.startswith("g"):
            return
        for done in subscription.ending:
            done(None)
        subscription.ending.clear()
        place = subscription.queue, subscription.urgent
        if label in (self._bells.get(place), self._standing.get(place, ("", 0))[0]):
            self._bells.pop(place, None)
            self._standing[place] = label, tag
            if place in self._crowded:
                self._unhang([place])
        else:
            self._cancel(self._channel, label, lambda _: None)

    def cancelled(self, consumer: str) -> None:
        ended = self._subscribed.pop(consumer, None)
        with self._changed:
            if ended is not None:
                self._unhang([(ended.queue, True), (ended.queue, False)])
                self._admin.forget(ended.queue)
            self._stale = True
            self._changed.notify_all()

    def closed(self, error: Exception) -> None:
        if isinstance(error, ChannelClosed) and error.code == NOT_FOUND:
            for queue in self._queues:
                self._admin.forget(queue)
        self._bells.clear()
        self._standing.clear()
        self._crowded.clear()
        subscribed, self._subscribed = self._subscribed, {}
        for subscription in subscribed.values():
            for done in subscription.ending:
                done(error)
        with self._changed:
            self._channel = None
            self._ledger.remember(held for held, _ in self._owed.values())
            self._owed.clear()
            self._ledger.lose()
            if isinstance(error, ChannelClosed) and error.code != NOT_FOUND and "timed out" not in error.text:
                self._error = error.translate(self._link.target.place)
            self._changed.notify_all()
        if isinstance(error, ChannelClosed) and not self._closed and self._link.connection is not None:
            self.link_up(self._link.connection)
