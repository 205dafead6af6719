"""The mailboxes of a QueueBus on Pub/Sub: a topic a peer, and a subscription that expires when nobody reads it.

A topic does not expire, so it is removed by its owner, or by whoever notices that its owner is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from qnb.brokers.bus import MailboxGone
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.link import (
    ACKNOWLEDGE,
    CREATE_SUBSCRIPTION,
    CREATE_TOPIC,
    DELETE_SUBSCRIPTION,
    DELETE_TOPIC,
    GET_TOPIC,
    PUBLISH,
    Gone,
    Link,
)
from qnb.brokers.pubsub.shelf import MESSAGE_BYTES, batches, message

# The shortest that the service has.
EXPIRES_SECONDS = 86_400
RETENTION_SECONDS = 600
PULL_MESSAGES = 1_000
PULL_MARGIN = 1.0
ACK_SECONDS = 10.0


class PubsubMailboxes:
    """See Mailboxes of qnb.brokers.bus. An address is the topic's name, a space, and a word of this mailbox alone."""

    message_bytes = MESSAGE_BYTES - 1_000
    ordered = False

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._base = f"{prefix}++"

    def make(self, name: str) -> str:
        topic, word = self._base + quote(name, safe=""), os.urandom(6).hex()
        labels = {"qnb-box": word, "qnb-made": str(int(time.time()))}
        while True:
            self._remove_topic(topic)
            if self._link.create(CREATE_TOPIC, types.Topic(name=self._link.topic(topic), labels=labels)):
                break
        subscription = types.Subscription(
            name=self._subscription(f"{topic} {word}"),
            topic=self._link.topic(topic),
            ack_deadline_seconds=10,
            message_retention_duration=types.Duration(seconds=RETENTION_SECONDS),
            expiration_policy=types.ExpirationPolicy(ttl=types.Duration(seconds=EXPIRES_SECONDS)),
        )
        self._link.create(CREATE_SUBSCRIPTION, subscription)
        return f"{topic} {word}"

    def _subscription(self, address: str) -> str:
        topic, _, word = address.partition(" ")
        return self._link.subscription(f"{topic}+{word}")

    def _topic(self, name: str) -> Any:
        try:
            return self._link.call(GET_TOPIC, types.GetTopicRequest(topic=self._link.topic(name)))
        except Gone:
            return None

    def _remove_topic(self, name: str) -> None:
        """And the mailbox that it was."""
        found = self._topic(name)
        if found is not None:
            self.remove(f"{name} {found.labels['qnb-box']}")

    def find(self, prefix: str = "") -> Mapping[str, str]:
        found: dict[str, str] = {}
        for topic in self._link.topics():
            name = topic.name.rpartition("/")[2]
            if name.startswith(self._base):
                peer = unquote(name.removeprefix(self._base))
                if peer.startswith(prefix):
                    found[peer] = f"{name} {topic.labels['qnb-box']}"
        return found

    def age(self, address: str) -> float | None:
        topic, _, word = address.partition(" ")
        found = self._topic(topic)
        if found is None or found.labels["qnb-box"] != word:
            return None
        made = found.labels["qnb-made"]
        return max(0.0, time.time() - int(made)) if made.isdecimal() else 0.0

    def send_many(self, messages: Sequence[tuple[str, bytes]]) -> Collection[str]:
        groups: dict[str, list[Any]] = {}
        for name, body in messages:
            groups.setdefault(name, []).append(message(body))
        gone = []
        for name, group in groups.items():
            topic = self._link.topic(self._base + quote(name, safe=""))
            try:
                for batch in batches(group):
                    self._link.call(PUBLISH, types.PublishRequest(topic=topic, messages=batch))
            except Gone:
                gone.append(name)
        return gone

    def receive(self, address: str, timeout: float) -> Sequence[bytes]:
        subscription = self._subscription(address)
        request = types.PullRequest(subscription=subscription, max_messages=PULL_MESSAGES)
        try:
            received = self._link.pull(request, timeout + PULL_MARGIN)
            if not received:
                return ()
            ids = [each.ack_id for each in received]
            # Without a wait: what comes twice is known by its number.
            self._link.start(ACKNOWLEDGE, types.AcknowledgeRequest(subscription=subscription, ack_ids=ids), ACK_SECONDS)
        except Gone as error:
            raise MailboxGone(address) from error
        return [each.message.data for each in received]

    def remove(self, address: str) -> None:
        topic, _, word = address.partition(" ")
        name = self._subscription(address)
        self._link.drop(DELETE_SUBSCRIPTION, types.DeleteSubscriptionRequest(subscription=name))
        found = self._topic(topic)
        if found is not None and found.labels["qnb-box"] == word:
            self._link.drop(DELETE_TOPIC, types.DeleteTopicRequest(topic=self._link.topic(topic)))
