"""Pub/Sub through google-cloud-pubsub: publishes and pulls of up to 1,000 messages, which its API allows at most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.pubsub import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage

from tests.bench.systems.raw import RawLoop, message, number_of, place_of

BATCH = 1000


class Ends:
    """Both clients of a half, and the names of topics and subscriptions."""

    def __init__(self, url: str) -> None:
        place = place_of(url)
        channel = grpc.insecure_channel(f"{place.server.hostname}:{place.server.port}")
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.project, self.word = f"projects/{place.server.username}", place.word

    def topic(self, half: str) -> str:
        """Tasks or outcomes."""
        return f"{self.project}/topics/{self.word}-{half}"

    def subscription(self, half: str) -> str:
        """Its only one."""
        return f"{self.project}/subscriptions/{self.word}-{half}"

    def make(self) -> None:
        """Topics and subscriptions."""
        for half in ("tasks", "outcomes"):
            self.publisher.create_topic(name=self.topic(half))
            self.subscriber.create_subscription(name=self.subscription(half), topic=self.topic(half))

    def send(self, half: str, data: Sequence[bytes]) -> None:
        """Each as a message of its own."""
        for start in range(0, len(data), BATCH):
            messages = [PubsubMessage(data=one) for one in data[start : start + BATCH]]
            self.publisher.api.publish(topic=self.topic(half), messages=messages)

    def take(self, half: str) -> tuple[list[bytes], list[str]]:
        """Data, and what acknowledges it."""
        try:
            pulled: Any = self.subscriber.pull(
                subscription=self.subscription(half), max_messages=BATCH, timeout=5, retry=None
            )
        except DeadlineExceeded:
            return [], []
        return [one.message.data for one in pulled.received_messages], [one.ack_id for one in pulled.received_messages]

    def acknowledge(self, half: str, ids: Sequence[str]) -> None:
        """Nothing of it comes again."""
        self.subscriber.acknowledge(subscription=self.subscription(half), ack_ids=ids)


class RawPubsub(RawLoop):
    """Two topics with a subscription each."""

    label = "raw google-cloud-pubsub, a message a task in batches of 1,000, an outcome message each"
    broker = "pubsub"

    def prepare(self) -> None:
        Ends(self.place.broker).make()

    def connect(self) -> None:
        self.ends = Ends(self.place.broker)

    def publish(self, numbers: Sequence[int]) -> None:
        self.ends.send("tasks", [message(number) for number in numbers])

    def collect(self, count: int) -> list[int]:
        found: set[int] = set()  # one may come twice
        while len(found) < count:
            data, ids = self.ends.take("outcomes")
            if ids:
                found.update(map(number_of, data))
                self.ends.acknowledge("outcomes", ids)
        return list(found)


def serve(url: str) -> None:
    """The worker's half."""
    ends = Ends(url)
    while True:
        data, ids = ends.take("tasks")
        if ids:
            ends.send("outcomes", data)
            ends.acknowledge("tasks", ids)


if __name__ == "__main__":
    serve(sys.argv[1])
