"""Writing: one idempotent producer a broker, and a batch is confirmed when it is written everywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from qnb.brokers.kafka.client import GONE, Faults, code_of, log, translate
from qnb.brokers.kafka.records import Record
from qnb.brokers.kafka.topics import Topics
from qnb.errors import BrokerUnavailable, ConfigurationError, QnbError

_AGAIN_SECONDS = 10.0
_WARM_SECONDS = 0.7
_PLAIN = {"enable.idempotence": False, "acks": "all", "max.in.flight": 1}


class Publisher:
    """Safe from any thread; batches go out one after another, each whole.

    Only failures are reported message by message: what is not reported when the producer has nothing left is written.
    """

    def __init__(self, settings: dict[str, Any], topics: Topics, url: str, patience: float) -> None:
        self._settings = {
            "enable.idempotence": True,
            "linger.ms": 1,
            "message.timeout.ms": int(patience * 1000),
            "message.max.bytes": topics.options.message_bytes + 4096,
            "queue.buffering.max.kbytes": 262_144,
            **settings,
            "delivery.report.only.error": True,
        }
        self._reporter: Producer | None = None
        self._open()
        self._topics, self._url = topics, url
        self._lock = threading.Lock()
        self._turn = 0
        self._stamp = 0
        self._closed = False

    def _open(self) -> None:
        self._faults = Faults()
        self._producer = self._ready = self._make(self._settings)
        self._warm_at = time.monotonic() + (_WARM_SECONDS if self._settings["enable.idempotence"] else 0.0)

    def _make(self, settings: dict[str, Any]) -> Producer:
        try:
            return Producer({**settings, "error_cb": self._faults})
        except KafkaException as error:
            raise ConfigurationError(f"{error}: check the librdkafka settings in the URL") from error

    def _choose(self) -> None:
        """A producer that writes idempotently asks for its number half a second after it was made. Who publishes
        sooner does so through a plain one, with one request at a time: the order is kept, a retry may write twice."""
        if time.monotonic() >= self._warm_at:
            self._producer = self._ready
        elif self._producer is self._ready:
            self._producer = self._make({**self._settings, **_PLAIN})

    def _recover(self) -> KafkaError | None:
        """After a fault that ends a producer, a new one. None when the batch may be sent once more."""
        fatal = self._faults.fatal
        code = code_of(fatal) if fatal is not None else None
        if code == KafkaError.CLUSTER_AUTHORIZATION_FAILED and self._settings["enable.idempotence"]:
            # Before Kafka 2.8 this is a right of its own; without it, one request at a time keeps the order too.
            log.info("%s: no right to write idempotently: acks=all, one request at a time", self._url)
            self._settings |= _PLAIN
            fatal = None
        self._open()
        return fatal

    def stamp(self, count: int) -> int:
        """The first of so many numbers in a row that order messages by time."""
        self._stamp = first = max(time.time_ns(), self._stamp + 1)
        self._stamp += count
        return first

    def next_partition(self, topic: str) -> int:
        """Each in its turn."""
        self._turn += 1
        return self._turn % self._topics.count(topic)

    def send(self, records: Sequence[Record]) -> dict[int, QnbError]:
        """Write all, in order; which of them were not, by position, and why."""
        if self._closed:
            raise BrokerUnavailable(f"{self._url} is closed: open a new one")
        failed = self._send(records)
        deadline = time.monotonic() + _AGAIN_SECONDS
        while gone := [at for at, code in failed.items() if code in GONE]:
            if time.monotonic() > deadline:
                break
            lost = {records[at].topic for at in gone}
            self._topics.forget(lost)
            self._topics.ensure(lost)  # removed under way: made again; or grown, and this client does not know yet
            self._look_again(lost)
            again = [records[at] for at in gone]
            again = [each._replace(partition=each.partition % self._topics.count(each.topic)) for each in again]
            for at in gone:
                del failed[at]
            failed |= {gone[at]: code for at, code in self._send(again).items()}
        return {at: self._error(code, records[at]) for at, code in failed.items()}

    def send_where(self, records: Sequence[Record]) -> list[int]:
        """Write all; the offset of each, -1 of those that were not written. For few: each is reported."""
        found = [-1] * len(records)

        def written(at: int, error: KafkaError | None, message: Any) -> None:
            if error is None:
                found[at] = message.offset()

        with self._lock:
            if self._reporter is None:
                self._reporter = self._make({**self._settings, **_PLAIN, "delivery.report.only.error": False})
            for at, (topic, partition, value, key, headers) in enumerate(records):
                report = partial(written, at)
                self._reporter.produce(topic, value, key, partition, report, headers=headers or [])
            while self._reporter.flush(0.5) and not self._closed:
                pass
        return found

    def _look_again(self, topics: Iterable[str]) -> None:
        for topic in topics:
            try:
                self._producer.list_topics(topic, timeout=5.0)
            except KafkaException as error:
                raise translate(error, self._url, f"look for topic {topic}") from error

    def _send(self, records: Sequence[Record]) -> dict[int, int]:
        failed: dict[int, int] = {}
        by_key: dict[tuple[str, int, bytes], int] = {}

        def report(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                if not by_key:
                    by_key.update({(r.topic, r.partition, r.key): at for at, r in enumerate(records)})
                at = by_key[message.topic(), message.partition(), message.key()]
                failed[at] = int(error.code())

        with self._lock:
            self._choose()
            produce = self._producer.produce
            for at, (topic, partition, value, key, headers) in enumerate(records):
                try:
                    if headers:
                        produce(topic, value, key, partition, report, headers=headers)
                    else:
                        produce(topic, value, key, partition, report)
                except (BufferError, KafkaException) as error:
                    self._overflow(at, records[at], error, report, failed)
            self._flush()
            if self._faults.fatal is None:
                return failed
            fatal = self._recover()
        if fatal is None:
            return self._send(records)
        return dict.fromkeys(range(len(records)), int(fatal.code()))

    def _flush(self) -> None:
        try:
            while self._producer.flush(0.5):  # in steps, so that Ctrl-C is heard
                if self._closed:
                    break
        except (KafkaException, SystemError) as error:  # how the client tells what ends a producer
            cause = error if isinstance(error, KafkaException) else error.__cause__
            if not isinstance(cause, KafkaException):
                raise
            self._faults.fatal = cause.args[0]

    def _overflow(self, at: int, record: Record, error: Exception, report: Any, failed: dict[int, int]) -> None:
        """The producer's own memory is full: wait for it. Anything else is that message's fault."""
        if self._faults.fatal is not None:
            return  # all of it is seen to then
        while isinstance(error, BufferError) or code_of(error) == KafkaError._QUEUE_FULL:
            self._producer.flush(0.5)
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, record.partition, report, headers=record.headers or []
                )
                return
            except (BufferError, KafkaException) as again:
                error = again
        failed[at] = code_of(error) or KafkaError._FAIL

    def _error(self, code: int, record: Record) -> QnbError:
        return translate(KafkaError(code), self._url, f"write to topic {record.topic}")

    def send_all(self, records: Sequence[Record]) -> None:
        """Write all, or raise what happened to the first that was not written."""
        for error in self.send(records).values():
            raise error

    def close(self) -> None:
        """Nothing waits here: each send has ended before it returned."""
        if not self._closed:
            self._closed = True
            try:
                self._producer.flush(1.0)
            except KafkaException as error:  # what ends a producer is told at each send, and nothing waits
                log.info("%s: closing: %s", self._url, error)
