"""The topics and subscriptions of queues: names, making, publishing, removing.

A queue is a topic and a subscription of the same name, one more of each for every priority above 0 that was asked
for, for delayed messages, and for dead letters.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from qnb.brokers.base import DEFAULT_LEASE
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.link import (
    CREATE_SUBSCRIPTION,
    CREATE_TOPIC,
    DELETE_SUBSCRIPTION,
    DELETE_TOPIC,
    GET_SUBSCRIPTION,
    GET_TOPIC,
    PUBLISH,
    UPDATE_SUBSCRIPTION,
    UPDATE_TOPIC,
    Gone,
    Link,
    Refused,
)
from qnb.errors import AccessDenied, ConfigurationError

log = logging.getLogger("qnb")

LATER, DEAD = "later", "dead"
# The service takes so much in one request; of the size, some is the request's own.
BATCH_MESSAGES, BATCH_BYTES = 1_000, 9_900_000
MESSAGE_BYTES = 9_900_000
# Bounds of an acknowledgement deadline, and by how much the server's outlasts the one that is kept here.
SHORTEST_DEADLINE, LONGEST_DEADLINE = 10, 600
MARGIN = 0.2
# Attributes: deliveries before this message was published anew; seconds of delay; its level; why it is dead; and a
# message that is no message, but says that a level has come into use.
COUNT, DELAY, LEVEL, REASON, HINT = "qnb-n", "qnb-delay", "qnb-level", "qnb-reason", "qnb-hint"
_BLANK = "qnb"  # a message must have data or an attribute
_LONGEST_NAME = 255
_TRIES = 5  # to make a queue that others remove


@dataclass(frozen=True, slots=True)
class ShelfOptions:
    """From the URL. `create`: make what is not there. `lease` is set when the URL names one."""

    prefix: str = "qnb"
    create: bool = True
    lease: float | None = None
    ordering: bool = False
    exactly_once: bool = False
    retention: int = 604_800


def server_deadline(lease: float) -> int:
    """The server's deadline, in whole seconds, for a lease that ends here."""
    return max(0, min(LONGEST_DEADLINE, math.ceil(lease + MARGIN)))


def first_deadline(lease: float) -> int:
    """What a subscription gives each delivery by itself."""
    return max(SHORTEST_DEADLINE, server_deadline(lease))


def message(body: bytes, attributes: Mapping[str, str] | None = None) -> Any:
    """A message; an empty one has an attribute, as the service wants data or an attribute."""
    return types.PubsubMessage(data=body, attributes=attributes or (None if body else {_BLANK: ""}))


class Shelf:
    """What a broker has made or seen of queues. Safe from any thread."""

    def __init__(self, link: Link, options: ShelfOptions) -> None:
        self.link, self.options = link, options
        self._lock = threading.RLock()
        self._known: set[str] = set()
        self._leases: dict[str, float] = {}
        # Told of parts of queues that this process begins to use.
        self.on_use: Callable[[str, str], None] = lambda queue, part: None
        self._base = options.prefix + "+"
        if not re.fullmatch(r"[A-Za-z][\w.~-]*", options.prefix, re.ASCII) or options.prefix.lower().startswith("goog"):
            raise ConfigurationError(
                f"prefix={options.prefix!r}: Pub/Sub wants a letter first, then letters, digits and -_.~; not goog"
            )

    # Names -----------------------------------------------------------------------------------------------------

    def name(self, queue: str, part: str | int = 0) -> str:
        """The name of a queue's topic and subscription; part is a priority, LATER or DEAD."""
        name = f"{self._base}{quote(queue, safe='')}" + (f"+{part}" if part else "")
        if len(name) > _LONGEST_NAME:
            raise ConfigurationError(f"the queue name {queue[:40]!r}… is too long: there is room for {_LONGEST_NAME}")
        return name

    def take_apart(self, name: str) -> tuple[str, str] | None:
        """The queue and the part of a topic's name; None when it is none of ours."""
        if not name.startswith(self._base):
            return None
        queue, _, part = name.removeprefix(self._base).partition("+")
        return (unquote(queue), part) if queue else None

    # Making ----------------------------------------------------------------------------------------------------

    def make(self, queue: str, part: str | int = 0, lease: float | None = None) -> None:
        """Topic and subscription are there when this returns."""
        name = self.name(queue, part)
        if name in self._known or not self.options.create:
            return
        lease = self.options.lease or lease or DEFAULT_LEASE
        with self._lock:
            if part == DEAD or not self._attached(name):
                self._make_whole(queue, part, lease)
            self._known.add(name)
        self.on_use(queue, str(part or ""))

    def _attached(self, name: str) -> bool:
        """Whether the subscription is there and has its topic."""
        request = types.GetSubscriptionRequest(subscription=self.link.subscription(name))
        try:
            found = self.link.call(GET_SUBSCRIPTION, request)
        except Gone:
            return False
        if found.topic == self.link.topic(name):
            return True
        # Its topic was removed, and what is published to one that is made anew would not get here.
        self._drop_subscription(name)
        return False

    def _drop_subscription(self, name: str) -> None:
        request = types.DeleteSubscriptionRequest(subscription=self.link.subscription(name))
        self.link.drop(DELETE_SUBSCRIPTION, request)

    def _make_whole(self, queue: str, part: str | int, lease: float) -> None:
        """Even if somebody removes the queue at this moment: then it is made anew."""
        for left in reversed(range(_TRIES)):
            try:
                self._make(queue, part, lease)
            except Gone:  # a topic that was there
                if not left:
                    raise
                self.forget(self.name(queue))
                self.forget(self.name(queue, DEAD))
            else:
                return

    def _make(self, queue: str, part: str | int, lease: float) -> None:
        name = self.name(queue, part)
        if part not in (DEAD, LATER):
            self.make(queue, DEAD)
        if part and part != DEAD:
            self.make(queue, 0, lease)
        labels = {"qnb-lease": str(round(lease * 1000))}
        if not part:
            self._leases.setdefault(name, lease)
        new = self.link.create(CREATE_TOPIC, types.Topic(name=self.link.topic(name), labels=labels))
        while not self.link.create(CREATE_SUBSCRIPTION, self._subscription(queue, part, lease)):
            if self._attached(name):
                break
        if new and part and part != DEAD:  # consumers that are at it do not look for it all the time
            self.publish(self.name(queue), [message(b"", {HINT: str(part)})])

    def _subscription(self, queue: str, part: str | int, lease: float) -> Any:
        name, options = self.name(queue, part), self.options
        made = types.Subscription(
            name=self.link.subscription(name),
            topic=self.link.topic(name),
            ack_deadline_seconds=SHORTEST_DEADLINE if part in (LATER, DEAD) else first_deadline(lease),
            message_retention_duration=types.Duration(seconds=options.retention),
            expiration_policy=types.ExpirationPolicy(),  # never: the default is after 31 days without a consumer
            enable_exactly_once_delivery=options.exactly_once,
        )
        if part not in (LATER, DEAD):
            made.enable_message_ordering = options.ordering
            # What makes the server count deliveries. qnb gives up long before the server does.
            dead = self.link.topic(self.name(queue, DEAD))
            made.dead_letter_policy.CopyFrom(types.DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=100))
        return made

    def set_lease(self, queue: str, lease: float) -> None:
        """Another lease for a queue that was made before."""
        name = self.name(queue)
        topic = self.link.call(GET_TOPIC, types.GetTopicRequest(topic=self.link.topic(name)))
        topic.labels["qnb-lease"] = str(round(lease * 1000))
        mask = types.FieldMask(paths=["labels"])
        held = types.Subscription(
            name=self.link.subscription(name), topic=topic.name, ack_deadline_seconds=first_deadline(lease)
        )
        self._leases[name] = lease
        seconds = types.FieldMask(paths=["ack_deadline_seconds"])
        self.link.call(UPDATE_SUBSCRIPTION, types.UpdateSubscriptionRequest(subscription=held, update_mask=seconds))
        try:
            self.link.call(UPDATE_TOPIC, types.UpdateTopicRequest(topic=topic, update_mask=mask))
        except Refused:  # the emulator keeps the labels a topic was made with
            if not self.link.target.emulated:
                raise

    def look(self) -> dict[str, dict[str, str]]:
        """scan(), and what it told of leases kept; nothing where listing is not allowed."""
        try:
            found = self.scan()
        except AccessDenied as error:
            log.debug("%s", error)
            return {}
        for name, labels in found.items():
            if labels.get("qnb-lease", "").isdecimal():
                self._leases.setdefault(name, int(labels["qnb-lease"]) / 1000)
        return found

    def lease_of(self, queue: str) -> float:
        """The lease in force: the URL's, else what the queue was declared with."""
        return self.options.lease or self._leases.get(self.name(queue), DEFAULT_LEASE)

    def declared_lease(self, queue: str) -> float | None:
        """What the queue was declared with; None when not known."""
        return self._leases.get(self.name(queue))

    def deadline_of(self, queue: str) -> int | None:
        """What the queue's subscriptions give each delivery by themselves; None when not known."""
        lease = self._leases.get(self.name(queue))
        return None if lease is None else first_deadline(lease)

    def scan(self) -> dict[str, dict[str, str]]:
        """All topics with this prefix: name → labels."""
        names = ((topic.name.rpartition("/")[2], topic.labels) for topic in self.link.topics())
        return {name: dict(labels) for name, labels in names if name.startswith(self._base)}

    def remove(self, queue: str) -> None:
        """All topics and subscriptions of the queue."""
        names = [name for name in self.scan() if (self.take_apart(name) or ("",))[0] == queue]
        names.sort(key=len, reverse=True)  # the queue's own last: it is what queues() shows
        with self._lock:
            for name in names:
                # The subscription first: what a publisher makes anew in between is seen to be without its topic.
                self._drop_subscription(name)
                self.link.drop(DELETE_TOPIC, types.DeleteTopicRequest(topic=self.link.topic(name)))
                self._known.discard(name)
                self._leases.pop(name, None)

    # Publishing ------------------------------------------------------------------------------------------------

    def publish(self, name: str, messages: Sequence[Any]) -> None:
        """To a topic that is there; confirmed when this returns."""
        topic = self.link.topic(name)
        for batch in batches(messages):
            self.link.call(PUBLISH, types.PublishRequest(topic=topic, messages=batch))

    def put(self, queue: str, part: str | int, messages: Sequence[Any]) -> None:
        """To a queue, which is made when it is not there."""
        self.make(queue, part)
        name = self.name(queue, part)
        self._order(name, part, messages)
        for batch in batches(messages):
            try:
                self.publish(name, batch)
            except Gone as error:
                if not self.options.create:
                    raise self.to_be_made(name, str(error)) from error
                self.forget(name)
                self.make(queue, part)
                self.publish(name, batch)

    def put_back(self, queue: str, level: int, messages: Sequence[Any]) -> None:
        """To where they came from; Gone when that has been removed, which is not to be undone by what was late."""
        name = self.name(queue, level)
        self._order(name, level, messages)
        for batch in batches(messages):
            self.publish(name, batch)

    def _order(self, name: str, part: str | int, messages: Sequence[Any]) -> None:
        if self.options.ordering and part not in (LATER, DEAD):
            for each in messages:
                each.ordering_key = name

    @staticmethod
    def to_be_made(name: str, why: str) -> ConfigurationError:
        """What somebody else has to make."""
        return ConfigurationError(
            f"{why}. It is not made, as the URL says create=false: gcloud pubsub topics create {name}; "
            f"gcloud pubsub subscriptions create {name} --topic={name}"
        )

    def forget(self, name: str) -> None:
        """It was found to be gone."""
        with self._lock:
            self._known.discard(name)


def batches(messages: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Pieces that one request may carry."""
    batch: list[Any] = []
    size = 0
    for each in messages:
        more = each.ByteSize() + 8
        if batch and (len(batch) >= BATCH_MESSAGES or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield batch
