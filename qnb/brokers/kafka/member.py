"""One member of the group of workers: its thread polls whatever the tasks do, and it commits what the ledgers say."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from qnb.brokers.kafka.client import GONE, code_of, log, translate
from qnb.brokers.kafka.context import Context
from qnb.brokers.kafka.ledger import Ledger
from qnb.brokers.kafka.records import Entry, entry_of
from qnb.brokers.kafka.shelf import Place, Shelf
from qnb.brokers.memory.bus import Gate

# confluent-kafka lets no other thread near a consumer that polls, so all is done between two polls: short ones while
# something happens, longer ones the longer nothing does. A message ends a poll at once.
_POLL_SECONDS = (0.001, 0.02, 0.05)
_BATCH = 1000
# A busy machine answers late; a member that is thrown out has everything delivered twice.
_LEAST_SESSION = 1.5
_COMMIT_AGAIN_SECONDS = 5.0
_COMMIT_PAUSE_SECONDS = 0.1
_LOOK_SECONDS = 5.0
_REVOKE_SECONDS, _LAST_COMMIT_SECONDS = 1.0, 10.0
_PASSING = {KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID}


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def commit_here(key: tuple[str, str]) -> None:
    """Have what the consumers of this process know of this place committed, before it is asked for."""
    for member in list(_members):
        if member.context.key == key:
            member.commit_now()


class Member:
    """`changed` is called when something may be ready or the assignment is another; `moved` gets what is held of
    partitions that go, and brings it to safety."""

    def __init__(
        self,
        context: Context,
        shelf: Shelf,
        lease: float,
        changed: Callable[[], None],
        moved: Callable[[list[Entry], list[Place]], None],
    ) -> None:
        self.context = context
        self.lock = threading.RLock()
        self.error: KafkaError | None = None
        self.assigned = 0  # how often there was an assignment
        self.in_group = False
        self._shelf, self._lease = shelf, lease
        self._changed, self._moved = changed, moved
        self.arrived: Callable[[], None] = lambda: None  # called in the polling thread, before the claims are committed
        self.handed_out = 0  # how often something was; and for how many of those times that is sent, and confirmed
        self._sent = self._safe = 0
        self._sending: deque[int] = deque()
        self._confirmed = Gate()
        self._in_flight = 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._pause = 0.0
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._topics: list[str] = []
        self.group = ""

    def start(self, topics: Sequence[str], group: str) -> None:
        """Join the group."""
        self.group = group
        low, high = self.context.bounds()
        session = min(max(self._lease, low, _LEAST_SESSION), high)
        settings = {
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(session * 1000),
            "heartbeat.interval.ms": int(min(session / 5, 0.25) * 1000),
            "max.poll.interval.ms": max(300_000, int(session * 1000)),
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 20,
            "queued.min.messages": 2000,
            "queued.max.messages.kbytes": 32_768,
            "topic.metadata.refresh.interval.ms": 30_000,  # partitions that somebody adds by hand wait no longer
            **self.context.settings,
            "group.id": self.group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "on_commit": self._committed,
        }
        try:
            self._consumer = Consumer(settings)
        except KafkaException as error:
            raise translate(error, self.context.url, "open a consumer") from error
        self._subscribe(sorted(topics))
        self._thread = threading.Thread(target=self._run, name="qnb-kafka", daemon=True)
        self._thread.start()
        _members.add(self)

    @property
    def started(self) -> bool:
        return self._consumer is not None

    def subscribe(self, topics: Sequence[str]) -> bool:
        """Take part in these topics, and no others; whether that is new."""
        wanted = sorted(topics)
        if self._consumer is None or wanted == self._topics:
            return False
        self._run_there(lambda: self._subscribe(wanted), wait=False)
        return True

    def look_for_partitions(self) -> None:
        """Topics have grown. By itself the client looks once in a while, and only an answer about all topics counts."""
        consumer = self._consumer
        if consumer is not None:
            self._run_there(lambda: consumer.list_topics(timeout=_LOOK_SECONDS), wait=False)

    def _subscribe(self, topics: list[str]) -> None:
        consumer = self._consumer
        assert consumer is not None
        if set(self._topics) - set(topics):
            self._commit_all()  # what of the others is settled; they may go without a word
        self._topics = topics
        try:
            if topics:
                consumer.subscribe(topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lost)
            else:
                consumer.unsubscribe()
        except KafkaException as error:
            raise translate(error, self.context.url, "subscribe") from error

    def _run_there(self, job: Callable[[], None], wait: bool) -> None:
        """In the polling thread, between two polls."""
        if threading.current_thread() is self._thread:
            job()
            return
        done = threading.Event()

        def run() -> None:
            try:
                job()
            finally:
                done.set()

        self._jobs.append(run)
        self._pause = 0.0
        while wait and not done.wait(0.5):
            if self._thread is None or not self._thread.is_alive():
                return

    # ------------------------------------------------------------------------------------------ polling

    def _run(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        while not self._closing:
            try:
                self._serve(consumer)
                first = consumer.poll(self._pause)
                if first is not None:
                    self._take([first, *consumer.consume(_BATCH, 0)])
            except KafkaException as error:
                log.warning("%s: %s", self.context.url, error)
                time.sleep(0.1)
            except Exception:
                log.exception("%s: a fault of qnb's own", self.context.url)
                time.sleep(0.1)
        while self._jobs:
            self._jobs.popleft()()

    def _serve(self, consumer: Consumer) -> None:
        """What others want done, and how long the next poll may be."""
        least, busy, idle = _POLL_SECONDS
        most = busy if self._shelf.held or self._shelf.ready else idle
        self._pause = min(max(least, self._pause * 1.5), most)
        while self._jobs:
            self._jobs.popleft()()
        self._commit(consumer)
        self._pace(consumer)

    def _take(self, messages: Sequence[Any]) -> None:
        kinds: dict[str, tuple[str, str]] = {}
        entries, ends = [], []
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ends.append(message)
                else:
                    self._hear(error, message)
                continue
            topic = message.topic()
            if topic not in kinds:
                kinds[topic] = self.context.topics.names.queue_of(topic) or (topic, "")
            entries.append(entry_of(message, *kinds[topic]))
        with self.lock:
            for entry in entries:
                self._shelf.put(entry)
            for end in ends:
                self._shelf.seen_end((end.topic(), end.partition()), end.offset())
        self._pause = 0.0
        self.arrived()
        assert self._consumer is not None
        self._commit(self._consumer)
        self._changed()

    def _hear(self, error: KafkaError, message: Any) -> None:
        log.info("%s: %s: %s", self.context.url, message.topic(), error.str())
        if error.code() not in GONE and not error.retriable() and error.code() > 0:
            self.error = error
            self._changed()

    def _pace(self, consumer: Consumer) -> None:
        """Fetch no more of what there is plenty of; polling goes on."""
        with self.lock:
            stop = [part for part in self._shelf.parts.values() if part.full and not part.paused]
            go = [part for part in self._shelf.parts.values() if part.paused and part.roomy]
        for parts, act, paused in ((stop, consumer.pause, True), (go, consumer.resume, False)):
            if parts:
                act([TopicPartition(*part.place) for part in parts])
                for part in parts:
                    part.paused = paused

    # ------------------------------------------------------------------------------------------ rebalance

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = self._find_commits(consumer, partitions) if partitions else []
        with self.lock:
            for each in found:
                known = each.offset >= 0
                ledger = Ledger.decode(each.offset, each.metadata or "") if known else Ledger(0)
                self._shelf.add_part((each.topic, each.partition), ledger)
        begin = [TopicPartition(t.topic, t.partition, max(0, t.offset)) for t in found]
        consumer.incremental_assign(begin)
        self.assigned += 1
        self.in_group = True
        self._changed()

    def _find_commits(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Nothing is taken of a partition before it is known what is settled there, and it has no other owner."""
        pause = 0.1
        while not self._closing:
            try:
                found: list[TopicPartition] = consumer.committed(partitions, timeout=5.0)
                if not any(each.error for each in found):
                    return found
            except KafkaException as error:
                log.warning("%s: read the offsets: %s", self.context.url, error)
            time.sleep(pause)
            pause = min(1.0, 2 * pause)
        return []

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Partitions go to someone else: what is held of them is moved into one that stays, the rest is written."""
        places = [(each.topic, each.partition) for each in partitions]
        with self.lock:
            held = self._shelf.leave(places)
        if held:
            self._moved(held, places)
        with self.lock:
            self._shelf.dirty.update(place for place in places if place in self._shelf.parts)
        deadline = time.monotonic() + _REVOKE_SECONDS
        while not self.commit_now() and time.monotonic() < deadline:
            time.sleep(0.05)  # what is not written now, the next owner does not know
        self._drop(places)
        consumer.incremental_unassign(partitions)
        self._changed()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group went on without this member: it has nothing of these any more."""
        log.warning("%s: out of the group for a while; %d partitions went to others", self.context.url, len(partitions))
        self._drop([(each.topic, each.partition) for each in partitions])
        consumer.incremental_unassign(partitions)
        self._changed()

    def _drop(self, places: Sequence[Place]) -> None:
        with self.lock:
            for place in places:
                self._shelf.drop_part(place)
        self.assigned += 1

    def drop_topics(self, topics: Sequence[str]) -> None:
        """They were removed: nothing of them can be settled any more. Subscribed again when they are made again."""
        with self.lock:
            places = [place for place in self._shelf.parts if place[0] in topics]
        self._drop(places)
        self.subscribe([topic for topic in self._topics if topic not in topics])

    # ------------------------------------------------------------------------------------------ commits

    def _snapshot(self) -> list[TopicPartition]:
        with self.lock:
            parts = [self._shelf.parts[place] for place in self._shelf.dirty if place in self._shelf.parts]
            self._shelf.dirty.clear()
            return [TopicPartition(*part.place, part.ledger.base, part.ledger.encode()) for part in parts]

    def _restore(self, offsets: Sequence[TopicPartition]) -> None:
        with self.lock:
            self._shelf.dirty.update(
                (each.topic, each.partition) for each in offsets if (each.topic, each.partition) in self._shelf.parts
            )

    def commit_soon(self) -> None:
        """Send what has changed; while one commit is under way, the next gathers."""
        self._pause = 0.0

    def _commit(self, consumer: Consumer) -> None:
        now = time.monotonic()
        if not self._shelf.dirty or (now < self._in_flight and self.handed_out == self._sent):
            return
        self._sent = self.handed_out
        offsets = self._snapshot()
        if not offsets:
            return
        self._in_flight = now + _COMMIT_AGAIN_SECONDS
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
            self._sending.append(self._sent)
        except (KafkaException, RuntimeError) as error:
            self._not_committed(error, offsets)

    def wait_until_safe(self, seconds: float) -> None:
        """Until the server knows what was handed out: then a crash is counted, whenever it comes. Not for long: a
        server that is slow to answer must not keep the work waiting."""
        wanted, deadline = self.handed_out, time.monotonic() + seconds
        while self._safe < wanted and (left := deadline - time.monotonic()) > 0:
            self._confirmed.wait(left)

    def _not_committed(self, error: object, offsets: Sequence[TopicPartition]) -> None:
        log.info("%s: commit: %s", self.context.url, error)
        self._in_flight = time.monotonic() + _COMMIT_PAUSE_SECONDS
        self._restore(offsets)

    def _committed(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        number = self._sending.popleft() if self._sending else 0
        if not self._sending:
            self._in_flight = 0.0
        failed = [each for each in offsets if each.error is not None] if error is None else offsets
        if not failed:
            self._safe = max(self._safe, number)
            self._confirmed.open()
        if failed:
            self._not_committed(error or failed[0].error, failed)

    def commit_now(self) -> bool:
        """Whether all that is known is committed, and this is a member of the group."""
        answer: list[bool] = []
        if self._consumer is None:
            return True
        self._run_there(lambda: answer.append(self._commit_all()), wait=True)
        return bool(answer and answer[0])

    def _commit_all(self) -> bool:
        offsets = self._snapshot()
        if not offsets or self._consumer is None:
            return True
        try:
            done = self._consumer.commit(offsets=offsets, asynchronous=False)
        except (KafkaException, RuntimeError) as error:
            log.info("%s: commit: %s", self.context.url, error)
            self._restore(offsets)
            return False
        failed = [each for each in done or () if each.error is not None]
        self._restore(failed)
        return not failed

    def close(self) -> None:
        """Leave the group. What should be released is released already."""
        self._closing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._last_commit(consumer)
            consumer.close()

    def _last_commit(self, consumer: Consumer) -> None:
        offsets = self._snapshot()
        deadline = time.monotonic() + _LAST_COMMIT_SECONDS
        while offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
                return
            except (KafkaException, RuntimeError) as error:
                if code_of(error) not in _PASSING or time.monotonic() > deadline:
                    log.info("%s: last commit: %s", self.context.url, error)
                    return
                consumer.poll(0.05)  # a rebalance under way: the new generation may commit
