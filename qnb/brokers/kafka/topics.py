"""The topics of a prefix: made when first asked for, grown, measured, emptied, removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, OffsetSpec

from qnb.brokers.kafka.client import GONE, PATIENCE, UNAVAILABLE, code_of, log, translate
from qnb.brokers.kafka.ledger import not_waiting
from qnb.brokers.kafka.records import DEAD, LEVELS, Names
from qnb.errors import BrokerError

PARTITIONS = 8
BUS_PARTITIONS = 8
BUS_RETENTION = 300.0
REQUEST_SECONDS = 10.0
CREATE_SECONDS = 20.0
COORDINATOR_SECONDS = 2.5
# How long a count of partitions is believed, and a topic believed to be there.
FRESH_SECONDS = 30.0
_EXISTS = KafkaError.TOPIC_ALREADY_EXISTS


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """How topics are made."""

    partitions: int = PARTITIONS
    most_partitions: int = 64
    replication: int = -1
    message_bytes: int = 0
    patience: float = PATIENCE


class Topics:
    """Safe from any thread."""

    def __init__(self, admin: AdminClient, names: Names, options: TopicOptions, url: str) -> None:
        self.names, self.options = names, options
        self._admin, self._url = admin, url
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._read_at = 0.0
        self._replication = options.replication
        self.made: Callable[[Sequence[str]], None] = lambda topics: None

    def learn(self, metadata: Any) -> None:
        """Take over what a metadata answer says."""
        found = {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}
        self._counts = {name: count for name, count in found.items() if name.startswith(self.names.base)}
        self._read_at = time.monotonic()

    def refresh(self) -> None:
        """Ask the server which topics there are."""
        self.learn(self._patiently("list the topics", lambda: self._admin.list_topics(timeout=REQUEST_SECONDS)))

    def _patiently(self, doing: str, ask: Callable[[], Any]) -> Any:
        """Ride out an absence of the server."""
        deadline = time.monotonic() + self.options.patience
        while True:
            try:
                return ask()
            except (KafkaException, TimeoutError) as raised:
                error = raised if isinstance(raised, KafkaException) else _no_answer()
                if code_of(error) not in UNAVAILABLE or time.monotonic() > deadline:
                    raise translate(error, self._url, doing) from raised
                time.sleep(0.1)

    def forget(self, topics: Iterable[str]) -> None:
        """They seem not to be there any more."""
        with self._lock:
            self._counts = {name: count for name, count in self._counts.items() if name not in set(topics)}

    def count(self, topic: str) -> int:
        """How many partitions it has, made when it is not there."""
        known = self._counts.get(topic)
        if known is None or time.monotonic() - self._read_at > FRESH_SECONDS:
            self.ensure([topic])
            known = self._counts[topic]
        return known

    def known(self, topic: str) -> int:
        """How many partitions it had when last looked at; 0 when it was not there."""
        return self._counts.get(topic, 0)

    def of_queue(self, queue: str) -> list[str]:
        """The topics of a queue that are there, without its dead letters."""
        names = self.names
        all_of_it = [*(names.topic(queue, level) for level in range(LEVELS)), names.later(queue)]
        return [topic for topic in all_of_it if topic in self._counts]

    def queues(self) -> list[str]:
        found = (self.names.queue_of(topic) for topic in self._counts)
        return sorted({queue for pair in found if pair for queue in [pair[0]]})

    def ensure(self, topics: Iterable[str]) -> None:
        """Make those that are not there."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self.refresh()
            missing = [topic for topic in dict.fromkeys(topics) if topic not in self._counts]
            if not missing:
                return
            self.refresh()
            missing = [topic for topic in missing if topic not in self._counts]
            if missing:  # the topics of the bus are made along with the first
                bus = [topic for topic in (self.names.bus, self.names.peers) if topic not in self._counts]
                self._create(list(dict.fromkeys([*missing, *bus])))
        if missing:
            self.made(missing)

    def _create(self, topics: Sequence[str]) -> None:
        patience = max(CREATE_SECONDS, self.options.patience)
        deadline, latest = time.monotonic() + patience, time.monotonic() + 3 * patience
        left = list(topics)
        while left:
            asked = self._admin.create_topics([self._new(topic) for topic in left], operation_timeout=REQUEST_SECONDS)
            refused = {}
            for topic, future in asked.items():
                error = _outcome(future)
                if error is not None:
                    refused[topic] = error
            if self._replication < 0 and any(code_of(e) == KafkaError._UNSUPPORTED_FEATURE for e in refused.values()):
                self._replication = int(self._server_setting("default.replication.factor") or 1)  # before Kafka 2.4
                continue
            for topic, error in refused.items():
                if code_of(error) != _EXISTS and code_of(error) not in UNAVAILABLE:
                    raise translate(error, self._url, f"create topic {topic} ({self._counts_for(topic)} partitions)")
            self.refresh()  # one that is there, or is being removed: then it is asked for again until it is gone
            if any(code_of(error) in UNAVAILABLE for error in refused.values()):  # back, and busy with what it had
                deadline = min(time.monotonic() + patience, latest)
            left = [topic for topic in topics if topic not in self._counts]
            if left and time.monotonic() > deadline:
                raise BrokerError(f"{self._url}: topics {', '.join(left)} are not to be had: being removed?")
            if left:
                time.sleep(0.05)

    def _counts_for(self, topic: str) -> int:
        if topic == self.names.bus:
            return BUS_PARTITIONS
        if topic == self.names.peers:
            return 2
        return 1 if topic.endswith(DEAD) else self.options.partitions

    def _new(self, topic: str) -> NewTopic:
        config = {"cleanup.policy": "delete", "max.message.bytes": str(self.options.message_bytes + 4096)}
        if topic in (self.names.bus, self.names.peers):
            config |= {"retention.ms": f"{BUS_RETENTION * 1000:.0f}", "segment.ms": f"{BUS_RETENTION * 1000:.0f}"}
        else:
            config["retention.ms"] = "-1"  # a task waits until it is done; what is done is cut off by trim()
        return NewTopic(topic, self._counts_for(topic), self._replication, config=config)

    def grow(self, topic: str, count: int) -> None:
        """More partitions, where the server lets this user."""
        asked = self._admin.create_partitions([NewPartitions(topic, count)], operation_timeout=REQUEST_SECONDS)
        error = _outcome(asked[topic])
        if error is not None:
            raise translate(error, self._url, f"grow topic {topic} to {count} partitions") from error
        self.refresh()

    def remove(self, topics: Sequence[str]) -> None:
        """Gone when this returns."""
        if not topics:
            return
        asked = self._admin.delete_topics(list(topics), operation_timeout=REQUEST_SECONDS)
        for topic, future in asked.items():
            error = _outcome(future)
            if error is not None and code_of(error) not in GONE | {KafkaError.REQUEST_TIMED_OUT}:
                raise translate(error, self._url, f"remove topic {topic}") from error
        deadline = time.monotonic() + CREATE_SECONDS
        self.refresh()
        while any(topic in self._counts for topic in topics) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.refresh()

    # ------------------------------------------------------------------------------------------ offsets

    def places(self, topics: Iterable[str]) -> list[tuple[str, int]]:
        return [(topic, partition) for topic in topics for partition in range(self.known(topic))]

    def ends(self, places: Sequence[tuple[str, int]], *, first: bool = False) -> dict[tuple[str, int], int]:
        """Where each partition ends, or begins; those that are not there are left out."""
        if not places:
            return {}
        spec = OffsetSpec.earliest() if first else OffsetSpec.latest()
        wanted = {TopicPartition(*place): spec for place in places}

        def ask() -> dict[tuple[str, int], int]:
            found = {}
            for place, future in self._admin.list_offsets(wanted, request_timeout=REQUEST_SECONDS).items():
                error = _outcome(future)
                if error is None:
                    found[place.topic, place.partition] = int(future.result().offset)
                elif code_of(error) not in GONE:
                    raise error
            return found

        answer: dict[tuple[str, int], int] = self._patiently(f"find the offsets of {places[0][0]}", ask)
        return answer

    def commits(self, group: str, places: Sequence[tuple[str, int]] = ()) -> dict[tuple[str, int], tuple[int, str]]:
        """What a group has committed: the offset and what was written beside it."""
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(*place) for place in places] or None)

        def ask() -> Any:  # the first group of a server has to wait for the topic of groups: briefly, and again
            asked = self._admin.list_consumer_group_offsets([request], request_timeout=COORDINATOR_SECONDS)
            return asked[group].result(REQUEST_SECONDS)

        found = self._patiently(f"read the offsets of group {group}", ask)
        return {
            (each.topic, each.partition): (each.offset, each.metadata or "")
            for each in found.topic_partitions
            if each.offset >= 0
        }

    def depths(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        """How many messages wait in each partition, as far as their owners have said."""
        places = self.places(topics)
        if not places:
            return {}
        commits: dict[tuple[str, int], tuple[int, str]] = {}
        for group in self.names.groups(topics):
            commits |= self.commits(group, places)
        begins, ends = self.ends(places, first=True), self.ends(places)
        found = {}
        for place, end in ends.items():
            offset, text = commits.get(place, (0, ""))
            begin = begins.get(place, 0)
            if begin > offset:
                offset, text = begin, ""
            found[place] = max(0, end - offset - not_waiting(text))
        return found

    def cut(self, ends: Mapping[tuple[str, int], int]) -> None:
        """Delete what is before these offsets."""
        if not ends:
            return
        asked = self._admin.delete_records([TopicPartition(*place, end) for place, end in ends.items()])
        for place, future in asked.items():
            error = _outcome(future)
            if error is not None and code_of(error) not in GONE:
                raise translate(error, self._url, f"delete finished messages of {place.topic}") from error

    # ------------------------------------------------------------------------------------------ group

    def _server_setting(self, name: str) -> str | None:
        """A setting of one of the servers; None where this user may not ask."""
        try:
            metadata = self._admin.list_topics(timeout=REQUEST_SECONDS)
            [future] = self._admin.describe_configs(
                [ConfigResource("broker", str(next(iter(metadata.brokers))))]
            ).values()
            found = future.result(REQUEST_SECONDS).get(name)
            return None if found is None else str(found.value)
        except KafkaException:
            return None

    def group(self, name: str) -> Any:
        """A group as its coordinator describes it."""

        def ask() -> Any:
            return self._admin.describe_consumer_groups([name])[name].result(REQUEST_SECONDS)

        return self._patiently(f"describe group {name}", ask)

    def remove_group(self, name: str) -> None:
        """Forget a group that nobody is in; where the server will not, it does so by itself some day."""
        error = _outcome(self._admin.delete_consumer_groups([name])[name])
        if error is not None and code_of(error) != KafkaError.GROUP_ID_NOT_FOUND:
            log.info("%s: remove group %s: %s", self._url, name, error)

    def session_bounds(self) -> tuple[float, float]:
        """Between which a session timeout may lie, in seconds; the usual ones where this user may not ask."""
        low = self._server_setting("group.min.session.timeout.ms") or 6_000
        high = (self._server_setting("group.max.session.timeout.ms") if low != 6_000 else None) or 1_800_000
        return int(low) / 1000, int(high) / 1000

    def message_limit(self, topic: str) -> int | None:
        """What the server takes for this topic; None where this user may not ask."""
        try:
            [future] = self._admin.describe_configs([ConfigResource("topic", topic)]).values()
            return int(future.result(REQUEST_SECONDS)["max.message.bytes"].value)
        except (KafkaException, KeyError, ValueError, TypeError):
            return None

    def set_lease(self, topic: str, lease: float, consumer: Any) -> None:
        """Write the lease of a queue where every worker finds it: beside an offset of a group that nobody is in."""
        note = TopicPartition(topic, 0, 0, f"lease={lease!r}")
        try:
            consumer.commit(offsets=[note], asynchronous=False)
        except KafkaException as error:
            raise translate(error, self._url, f"write the lease of {topic}") from error

    def lease(self, topic: str) -> float | None:
        _, text = self.commits(self.names.leases, [(topic, 0)]).get((topic, 0), (0, ""))
        try:
            return float(text.removeprefix("lease=")) if text else None
        except ValueError:
            return None


def _outcome(future: Any) -> BaseException | None:
    try:
        found: BaseException | None = future.exception(CREATE_SECONDS)
    except TimeoutError:
        found = _no_answer()
    return found


def _no_answer() -> KafkaException:
    """What the client itself raises for other questions that get none in time."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT))
