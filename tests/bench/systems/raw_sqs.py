"""SQS through boto3: batches of ten, the most there are, over connections that are kept; four threads a half."""

from __future__ import annotations

import base64
import itertools
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl

import boto3
from botocore.config import Config

from tests.bench.systems.raw import RawLoop, message, number_of, place_of

THREADS = 4
BATCH = 10


def client(url: str) -> Any:
    """Safe for use by several threads."""
    server = place_of(url).server
    return boto3.client(
        "sqs",
        endpoint_url=f"http://{server.hostname}:{server.port}",
        region_name=dict(parse_qsl(server.query))["region"],
        aws_access_key_id=server.username,
        aws_secret_access_key=server.password,
        config=Config(max_pool_connections=3 * THREADS),
    )


def queue(found: Any, name: str) -> str:
    """The URL of a queue, made if it is new."""
    return str(found.create_queue(QueueName=name)["QueueUrl"])


def send(found: Any, target: str, bodies: Iterable[str]) -> None:
    """Up to ten."""
    entries = [{"Id": str(place), "MessageBody": body} for place, body in enumerate(bodies)]
    assert not found.send_message_batch(QueueUrl=target, Entries=entries).get("Failed")


def receive(found: Any, target: str, seconds: int = 1) -> list[dict[str, str]]:
    """Up to ten, waiting for the first."""
    taken = found.receive_message(QueueUrl=target, MaxNumberOfMessages=BATCH, WaitTimeSeconds=seconds)
    return list(taken.get("Messages", ()))


def delete(found: Any, target: str, messages: Iterable[dict[str, str]]) -> None:
    """Acknowledge."""
    entries = [{"Id": str(place), "ReceiptHandle": one["ReceiptHandle"]} for place, one in enumerate(messages)]
    found.delete_message_batch(QueueUrl=target, Entries=entries)


class RawSqs(RawLoop):
    """Standard queues; outcomes come in one of their own."""

    label = "raw boto3 (4 threads a process), a message a task in batches of 10, an outcome message each"
    broker = "sqs"

    def prepare(self) -> None:
        found = client(self.place.broker)
        for half in ("tasks", "outcomes"):
            queue(found, f"{self.place.word}-{half}")

    def connect(self) -> None:
        self.client = client(self.place.broker)
        self.tasks = queue(self.client, f"{self.place.word}-tasks")
        self.outcomes = queue(self.client, f"{self.place.word}-outcomes")
        self.pool = ThreadPoolExecutor(2 * THREADS)

    def publish(self, numbers: Sequence[int]) -> None:
        bodies = [base64.b64encode(message(number)).decode() for number in numbers]
        batches = [bodies[start : start + BATCH] for start in range(0, len(bodies), BATCH)]
        self.sending = [self.pool.submit(send, self.client, self.tasks, batch) for batch in batches]

    def collect(self, count: int) -> list[int]:
        found: set[int] = set()  # a standard queue may bring one twice

        def take() -> None:
            while len(found) < count:
                messages = receive(self.client, self.outcomes)
                if messages:
                    found.update(number_of(base64.b64decode(one["Body"])) for one in messages)
                    delete(self.client, self.outcomes, messages)

        if count == 1:  # no other thread's long poll is to be waited for
            take()
        else:
            for taking in [self.pool.submit(take) for _ in range(THREADS)]:
                taking.result()
        for sending in self.sending:
            sending.result()
        return list(found)


def serve(url: str) -> None:
    """The worker's half."""
    found = client(url)
    tasks, outcomes = (queue(found, f"{place_of(url).word}-{half}") for half in ("tasks", "outcomes"))

    def work() -> None:
        for _ in itertools.count():
            messages = receive(found, tasks)
            if messages:
                send(found, outcomes, [one["Body"] for one in messages])
                delete(found, tasks, messages)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    serve(sys.argv[1])
