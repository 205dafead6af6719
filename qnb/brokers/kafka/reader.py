"""Reading partitions without a group, in a thread: from given offsets on, for whoever wants to hear it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from qnb.brokers.kafka.client import log, translate, without_group
from qnb.errors import BrokerUnavailable

# Between two polls: confluent-kafka lets no other thread near a consumer that polls. A message ends a poll at once.
_POLL_SECONDS = 0.05
_BATCH = 500
_AGAIN_SECONDS = 0.1


class Reader:
    """One consumer without a group, made at the first add()."""

    def __init__(self, settings: dict[str, Any], read: Callable[[Any], None], url: str) -> None:
        self._settings = {
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 150,
            "queued.min.messages": 1000,
            "queued.max.messages.kbytes": 32_768,
            **without_group(settings),
        }
        self._read, self._url = read, url
        self._moved = threading.Condition()
        self._next: dict[tuple[str, int], int] = {}
        self._new: list[TopicPartition] = []
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._anew = self._closing = False

    def add(self, place: tuple[str, int], offset: int) -> None:
        """Read this partition too, from this offset; nothing changes when it is read already."""
        with self._moved:
            if self._closing:
                raise BrokerUnavailable(f"{self._url} is closed: open a new one")
            if place in self._next:
                return
            self._next[place] = offset
            self._new.append(TopicPartition(*place, offset))
            if self._thread is None:
                try:
                    self._consumer = Consumer(self._settings)
                except KafkaException as error:
                    raise translate(error, self._url, f"read topic {place[0]}") from error
                self._thread = threading.Thread(target=self._run, name="qnb-kafka-bus", daemon=True)
                self._thread.start()

    def wait(self, place: tuple[str, int], end: int, seconds: float) -> None:
        """Until all before this offset has been read. Where that takes long, a new client reads on halfway."""
        with self._moved:
            if self._moved.wait_for(lambda: self._closing or self._next[place] >= end, seconds / 2):
                return
            self._anew = True
            if not self._moved.wait_for(lambda: self._closing or self._next[place] >= end, seconds / 2):
                raise BrokerUnavailable(f"{self._url}: no answer from topic {place[0]} within {seconds:.0f} s")

    def _run(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        while not self._closing:
            try:
                self._turn(consumer)
            except KafkaException as error:
                log.warning("%s: %s", self._url, error)
                self._anew = True
            if self._anew:
                consumer = self._begin_anew(consumer)
        consumer.close()

    def _turn(self, consumer: Consumer) -> None:
        if self._new:
            with self._moved:
                new, self._new = self._new, []
            consumer.incremental_assign(new)
        first = consumer.poll(_POLL_SECONDS)
        if first is None:
            return
        for message in [first, *consumer.consume(_BATCH, 0)]:
            self._take(message)
        with self._moved:
            self._moved.notify_all()

    def _begin_anew(self, consumer: Consumer) -> Consumer:
        """A client that reads on where this one has stopped."""
        log.warning("%s: reading of the bus stands still: a new client reads on", self._url)
        consumer.close()
        time.sleep(_AGAIN_SECONDS)
        with self._moved:
            self._anew = False
            self._new = [TopicPartition(*place, offset) for place, offset in self._next.items()]
        self._consumer = Consumer(self._settings)
        return self._consumer

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                log.info("%s: reading %s: %s", self._url, message.topic(), error.str())
                time.sleep(0.05)
            return
        try:
            self._read(message)
        except Exception:
            log.exception("%s: a fault of qnb's own while reading %s", self._url, message.topic())
        self._next[message.topic(), message.partition()] = message.offset() + 1

    def close(self) -> None:
        with self._moved:
            self._closing = True
            self._moved.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
