"""Kafka as a broker: a topic for each queue and level in use, and one group of workers.

URLs: kafka://user:password@host1:9092,host2:9092?sasl_mechanism=SCRAM-SHA-256&security_protocol=SASL_SSL; every setting
of librdkafka by its own name, with dots or underscores.
Options: prefix (default qnb), lease (seconds), max_message (bytes), partitions (of a new topic, 8), max_partitions
(how far they grow with the workers, 64), replication (-1: the server's default), patience (seconds in which a message
has to be confirmed, 30).
"""

from __future__ import annotations

import os
import queue as queues_of_threads
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from confluent_kafka import Consumer as Client
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicPartition

from qnb.brokers.base import DEFAULT_LEASE, Bus, DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.checks import check_envelopes
from qnb.brokers.kafka.bus import KafkaBus, Talk
from qnb.brokers.kafka.client import MESSAGE_BYTES, PATIENCE, connect, log, settings_of, translate, without_group
from qnb.brokers.kafka.consumer import KafkaConsumer
from qnb.brokers.kafka.context import Context
from qnb.brokers.kafka.member import commit_here
from qnb.brokers.kafka.publisher import Publisher
from qnb.brokers.kafka.records import DEAD, REASON, Names, Record, base_of, headers_of, is_probe, key_of
from qnb.brokers.kafka.shelf import Place
from qnb.brokers.kafka.topics import PARTITIONS, TopicOptions, Topics
from qnb.errors import BrokerError, BrokerUnavailable, PublishFailed, QnbError, Unsupported
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import Address, parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

_PURGE_SECONDS = 5.0
_READ_SECONDS = 10.0
_OWNERS_SECONDS = 2.0
_TOGETHER = 100
_SETTLED = (ConsumerGroupState.STABLE, ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)


class KafkaBroker:
    """See Broker of the ports."""

    scheme: ClassVar[str] = "kafka"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.BUILT,
        redelivery=Support.NATIVE,
        delay=Support.BUILT,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.BUILT,
        queue_depth=Support.BUILT,
        survives_restart=Support.NATIVE,
        limits=Limits(message_bytes=MESSAGE_BYTES, priority_levels=10, ordering="none", lease_min_seconds=1.5),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        names = Names(base_of(address))
        largest = min(MESSAGE_BYTES, int(address.number("max_message", MESSAGE_BYTES)))
        self.features = replace(self.features, limits=replace(self.features.limits, message_bytes=largest))
        self._lease = address.number("lease", 0.0) or None
        if address.options.get("share", "false").lower() not in ("false", "0", "no"):
            raise Unsupported(
                f"{self.url}: share groups (KIP-932) are not used: their consumer cannot extend a lock, nor poll while "
                "a record is unsettled, so a task longer than the lock would run again: leave share out of the URL"
            )
        self._settings = settings_of(address)
        self._admin, metadata = connect(self._settings, self.url)
        self._topics = Topics(self._admin, names, _topic_options(address), self.url)
        self._topics.learn(metadata)
        self._topics.made = self._tell_of_topics
        self._publisher = Publisher(self._settings, self._topics, self.url, address.number("patience", PATIENCE))
        self._bus = KafkaBus(self._settings, self._topics, self._publisher, self.url)
        self._names = names
        self._bounds: tuple[float, float] | None = None
        self._consumers: list[KafkaConsumer] = []
        self._name = os.urandom(8).hex()
        self._answers: dict[str, queues_of_threads.SimpleQueue[Talk]] = {}
        self._hearing = False
        self._lock = threading.Lock()
        self._closed = False

    # ------------------------------------------------------------------------------------------ queues

    def _tell_of_topics(self, topics: Sequence[str]) -> None:
        """Workers that run take a new level of their queues in."""
        found = [self._names.queue_of(topic) for topic in topics]
        queues = {pair[0]: pair[1] for pair in found if pair and pair[1] != DEAD}
        for queue in queues:
            self._bus.say(Talk("topics", queue, self._name))
        if any(queues.values()):  # a level: until those who work on others have taken it in, it would come last
            try:
                self._wait_for_owners(topics)
            except BrokerUnavailable as error:  # what is published there is published all the same
                log.debug("who has %s is not known: %s", ", ".join(topics), error)

    def _wait_for_owners(self, topics: Sequence[str]) -> None:
        deadline = time.monotonic() + _OWNERS_SECONDS
        bases = {self._names.topic(pair[0]) for topic in topics if (pair := self._names.queue_of(topic))}
        while time.monotonic() < deadline:
            owned = {topic for topic, _ in self._owned(topics)}
            if not owned & bases or owned >= {topic for topic in topics if not topic.endswith(DEAD)}:
                return
            time.sleep(0.02)

    def declare(self, spec: QueueSpec) -> None:
        self._check()
        topic = self._names.topic(spec.name)
        self._topics.ensure([topic])
        if (self._topics.lease(topic) or DEFAULT_LEASE) != spec.lease:
            client = self._client(self._names.leases)
            try:
                self._topics.set_lease(topic, spec.lease, client)
            finally:
                client.close()

    def _client(self, group: str) -> Client:
        settings = {"enable.auto.commit": False, "enable.partition.eof": True, **without_group(self._settings)}
        settings["group.id"] = group
        try:
            return Client(settings)
        except KafkaException as error:
            raise translate(error, self.url, "open a consumer") from error

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable(f"{self.url} is closed: open a new one")

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        self._check()
        check_envelopes(envelopes, self.features, self.url)
        if not envelopes:
            return
        levels = {envelope.priority for envelope in envelopes if envelope.delay <= 0}
        failed: list[tuple[Envelope, QnbError]] = []
        if len(levels) < 2:
            failed = self._publish(envelopes)
        else:  # the most urgent first, so that nobody sees the others before them
            # All topics at once: each new one makes the group share its partitions anew.
            self._topics.ensure(self._names.topic(e.queue, level) for e in envelopes for level in {0, e.priority})
            for level in sorted(levels, reverse=True):
                failed += self._publish([e for e in envelopes if e.priority == level and e.delay <= 0])
            failed += self._publish([e for e in envelopes if e.delay > 0])
        if failed:
            self._fail(envelopes, failed)

    def _publish(self, envelopes: Sequence[Envelope]) -> list[tuple[Envelope, QnbError]]:
        if not envelopes:
            return []
        names, publisher = self._names, self._publisher
        first, now = publisher.stamp(len(envelopes)), time.time()
        topics: dict[tuple[str, int, bool], str] = {}
        records = []
        together = 0  # what is due together lies together: so the most urgent of it is found first
        for at, (queue, body, _, priority, delay) in enumerate(map(_fields, envelopes)):
            kind = (queue, priority, delay > 0)
            topic = topics.get(kind)
            if topic is None:
                topic = topics[kind] = names.later(queue) if delay > 0 else names.topic(queue, priority)
                self._topics.ensure([names.topic(queue), topic])
            if delay <= 0:
                records.append(Record(topic, publisher.next_partition(topic), body, key_of(first + at)))
                continue
            if at % _TOGETHER == 0 or not together:
                together = publisher.next_partition(topic) + 1
            headers = headers_of(due=now + delay, priority=priority)
            records.append(Record(topic, (together - 1) % self._topics.count(topic), body, key_of(first + at), headers))
        return [(envelopes[at], error) for at, error in publisher.send(records).items()]

    def _fail(self, envelopes: Sequence[Envelope], failed: Sequence[tuple[Envelope, QnbError]]) -> None:
        first = failed[0][1]
        if len(failed) == len(envelopes) and not isinstance(first, BrokerUnavailable):
            raise first
        lost = {id(envelope) for envelope, _ in failed}
        raise PublishFailed(
            f"{len(failed)} of {len(envelopes)} messages were not confirmed: {first}",
            [envelope for envelope in envelopes if id(envelope) in lost],
        ) from first

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> KafkaConsumer:
        self._check()
        self._topics.ensure(self._names.topic(queue) for queue in queues)
        lease = self._lease or min((self._lease_of(queue) for queue in queues), default=DEFAULT_LEASE)
        context = Context(self._settings, self._topics, self._publisher, self._bus, self.url, self._session_bounds)
        consumer = KafkaConsumer(context, queues, prefetch, lease)
        with self._lock:
            self._consumers = [*(each for each in self._consumers if not each.closed), consumer]
        return consumer

    def _lease_of(self, queue: str) -> float:
        return self._topics.lease(self._names.topic(queue)) or DEFAULT_LEASE

    def _session_bounds(self) -> tuple[float, float]:
        if self._bounds is None:
            self._bounds = self._topics.session_bounds()
        return self._bounds

    def _context_key(self) -> tuple[str, str]:
        return self._settings["bootstrap.servers"], self._names.base

    def depth(self, queue: str) -> int | None:
        self._check()
        commit_here(self._context_key())
        self._topics.refresh()
        return sum(self._topics.depths(self._topics.of_queue(queue)).values())

    def queues(self, prefix: str = "") -> Sequence[str]:
        self._check()
        self._topics.refresh()
        return [name for name in self._topics.queues() if name.startswith(prefix)]

    # ------------------------------------------------------------------------------------------ emptying

    def purge(self, queue: str) -> int:
        """Members drop what waits in their partitions; what belongs to nobody is deleted."""
        self._check()
        self._topics.refresh()
        topics = self._topics.of_queue(queue)
        ends = {place: end for place, end in self._topics.ends(self._topics.places(topics)).items() if end > 0}
        if not ends:
            return 0
        commit_here(self._context_key())
        owned = set(self._owned(topics)) & set(ends)
        count = self._ask_to_purge(queue, ends, owned) if owned else 0
        free = {place: end for place, end in ends.items() if place not in owned}
        if free:
            depths = self._topics.depths(topics)
            self._topics.cut(free)
            count += sum(depths.get(place, 0) for place in free)
        return count

    def _owned(self, topics: Sequence[str]) -> list[Place]:
        """The partitions that members of the groups of these topics have, as soon as that is settled."""
        deadline = time.monotonic() + _OWNERS_SECONDS
        members: list[Any] = []
        for name in self._names.groups(topics):
            group = self._topics.group(name)
            while group.state not in _SETTLED and time.monotonic() < deadline:
                time.sleep(0.02)
                group = self._topics.group(name)
            members += group.members
        return [
            (each.topic, each.partition)
            for member in members
            if member.assignment
            for each in member.assignment.topic_partitions
        ]

    def _hear(self, said: Talk) -> None:
        waiting = self._answers.get(said.sender) if said.kind == "purged" else None
        if waiting is not None:
            waiting.put(said)

    def _ask_to_purge(self, queue: str, ends: dict[Place, int], owned: set[Place]) -> int:
        with self._lock:
            if not self._hearing:
                self._bus.listen(self._hear)
                self._hearing = True
        request = os.urandom(8).hex()
        answers = self._answers[request] = queues_of_threads.SimpleQueue()
        try:
            self._bus.say(Talk("purge", queue, request, 0, [(*place, end) for place, end in ends.items()]))
            left, count, deadline = set(owned), 0, time.monotonic() + _PURGE_SECONDS
            while left:
                try:
                    said = answers.get(timeout=max(0.0, deadline - time.monotonic()))
                except queues_of_threads.Empty:
                    raise BrokerError(
                        f"{self.url}: {count} messages of {queue} dropped, but the worker that has "
                        f"{len(left)} of its partitions does not answer: purge again"
                    ) from None
                count += said.number
                left -= {(topic, partition) for topic, partition, _ in said.places}
            return count
        finally:
            del self._answers[request]

    def remove(self, queue: str) -> None:
        self._check()
        self._topics.refresh()
        dead = self._names.dead(queue)
        topics = [*self._topics.of_queue(queue), *([dead] if self._topics.known(dead) else [])]
        if topics:
            self._bus.say(Talk("removed", queue, self._name, 0, [(topic, 0, 0) for topic in topics]))
            self._topics.remove(topics)
        if is_probe(queue):
            self._topics.remove_group(self._names.group(queue))

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        self._check()
        topic = self._names.dead(queue)
        self._topics.refresh()
        if not self._topics.known(topic):
            return []
        end = self._topics.ends([(topic, 0)]).get((topic, 0), 0)
        begin = max(self._topics.ends([(topic, 0)], first=True).get((topic, 0), 0), end - limit)
        letters = [
            DeadLetter(queue, message.value() or b"", dict(message.headers() or ()).get(REASON, b"").decode())
            for message in self._read(topic, begin, end)
        ]
        return letters[::-1][:limit]

    def _read(self, topic: str, begin: int, end: int) -> list[Any]:
        if begin >= end:
            return []
        client = self._client(f"{self._names.base}readers")
        try:
            client.assign([TopicPartition(topic, 0, begin)])
            found: list[Any] = []
            deadline = time.monotonic() + _READ_SECONDS
            while time.monotonic() < deadline:
                message = client.poll(0.5)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    return found
                if found and found[-1].offset() + 1 >= end:
                    return found
            raise BrokerUnavailable(f"{self.url}: no answer from topic {topic} within {_READ_SECONDS:.0f} s")
        finally:
            client.close()

    # ------------------------------------------------------------------------------------------ the rest

    def bus(self) -> Bus:
        self._check()
        return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        """Kafka keeps no results."""
        return None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for consumer in self._consumers:
            consumer.close()
        self._bus.close()
        self._publisher.close()


def _fields(envelope: Envelope) -> tuple[str, bytes, str, int, float]:
    return envelope.queue, envelope.body, envelope.id, envelope.priority, envelope.delay


def _topic_options(address: Address) -> TopicOptions:
    largest = min(MESSAGE_BYTES, int(address.number("max_message", MESSAGE_BYTES)))
    partitions = max(1, int(address.number("partitions", PARTITIONS)))
    return TopicOptions(
        partitions=partitions,
        most_partitions=max(partitions, int(address.number("max_partitions", 64))),
        replication=int(address.number("replication", -1)),
        message_bytes=largest,
        patience=address.number("patience", PATIENCE),
    )
