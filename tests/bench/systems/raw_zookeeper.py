"""ZooKeeper through kazoo: a node a task, made, read and replaced by an outcome in transactions of 100."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from kazoo.client import KazooClient

from tests.bench.systems.raw import RawLoop, message, number_of, place_of

BATCH = 100
WINDOW = 8  # transactions under way at once


def connect(url: str) -> KazooClient:
    """A session."""
    client = KazooClient(place_of(url).server.netloc)
    client.start(10)
    return client


def slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """In batches."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


class Inbox:
    """Children of a node, in order, as they come; wakes by the watch of the node."""

    def __init__(self, client: KazooClient, path: str) -> None:
        self.client, self.path = client, path
        self._news = threading.Event()

    def take(self) -> tuple[list[str], list[bytes]]:
        """All that are there: names and data. Waits for the first."""
        while True:
            self._news.clear()
            names = sorted(self.client.get_children(self.path, watch=lambda _: self._news.set()))
            if names:
                waiting = [self.client.get_async(f"{self.path}/{name}") for name in names]
                return names, [one.get()[0] for one in waiting]
            self._news.wait()


def replace(client: KazooClient, gone: Sequence[str], target: str, made: Sequence[bytes]) -> None:
    """Delete nodes and make others, each batch at once, some batches under way."""
    under_way: list[Any] = []
    for lost, born in zip(slices(gone) if gone else slices([None] * len(made)), slices(made), strict=True):
        transaction = client.transaction()
        for path in lost:
            if path is not None:
                transaction.delete(path)
        for data in born:
            transaction.create(f"{target}/n-", data, sequence=True)
        under_way.append(transaction.commit_async())
        if len(under_way) >= WINDOW:
            check(under_way.pop(0))
    for one in under_way:
        check(one)


def check(answer: Any) -> None:
    """All of a transaction, or none of it."""
    failed = [one for one in answer.get() if isinstance(one, Exception)]
    if failed:
        raise failed[0]


class RawZookeeper(RawLoop):
    """One node with a node a task below it, and one for outcomes."""

    label = "raw kazoo, a node a task in transactions of 100, an outcome node each"
    broker = "zookeeper"

    def prepare(self) -> None:
        client = connect(self.place.broker)
        for half in ("tasks", "outcomes"):
            client.ensure_path(f"/{self.place.word}/{half}")
        client.stop()

    def connect(self) -> None:
        self.client = connect(self.place.broker)
        self.base = f"/{self.place.word}"
        self.inbox = Inbox(self.client, f"{self.base}/outcomes")

    def publish(self, numbers: Sequence[int]) -> None:
        replace(self.client, (), f"{self.base}/tasks", [message(number) for number in numbers])

    def collect(self, count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            names, data = self.inbox.take()
            found += map(number_of, data)
            under_way = []
            for some in slices(names):
                transaction = self.client.transaction()
                for name in some:
                    transaction.delete(f"{self.base}/outcomes/{name}")
                under_way.append(transaction.commit_async())
            for one in under_way:
                check(one)
        return found


def serve(url: str) -> None:
    """The worker's half."""
    client, base = connect(url), f"/{place_of(url).word}"
    inbox = Inbox(client, f"{base}/tasks")
    while True:
        names, data = inbox.take()
        replace(client, [f"{base}/tasks/{name}" for name in names], f"{base}/outcomes", data)


if __name__ == "__main__":
    serve(sys.argv[1])
