"""Amazon SQS: `sqs://`, with the options of `sqs_options`. Queues are made when they are first used.

A queue `NAME` has `NAME-p1` … `NAME-p9` beside it where priorities are used, and `NAME-dead` for what was rejected.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from qnb.brokers.base import Bus, DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.bus import QueueBus
from qnb.brokers.bus_mute import MuteBus
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.sqs import body as sqs_body
from qnb.brokers.sqs.boxes import SqsMailboxes
from qnb.brokers.sqs.client import Client, QueueGone, chunks
from qnb.brokers.sqs.consumer import SqsConsumer
from qnb.brokers.sqs.names import Names
from qnb.brokers.sqs.options import LONGEST_LEASE, read
from qnb.brokers.sqs.queues import LEVELS, Place, Queues
from qnb.brokers.sqs.settle import BURIED, REASON, entry
from qnb.errors import BrokerError, PayloadTooLarge, PublishFailed, QnbError
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

log = logging.getLogger("qnb")

# How long dead letters that are looked at are hidden from others, and how many are looked at.
_LOOK_SECONDS, _LOOK_LETTERS = 20, 2000
# Between tries to send to a queue that was made anew.
_MADE_SECONDS = (0.0, 0.5, 1.0, 1.0)
# How long close() waits for polls that are about to end.
_REST_SECONDS = 1.2


class SqsBroker:
    """Queues on Amazon SQS, or on a server that speaks its language."""

    scheme: ClassVar[str] = "sqs"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.NATIVE,
        redelivery=Support.NATIVE,
        delay=Support.NATIVE,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.BUILT,
        queue_depth=Support.NATIVE,
        survives_restart=Support.NATIVE,
        limits=Limits(
            message_bytes=sqs_body.room(1024 * 1024),
            batch_messages=10,
            delay_seconds=None,
            lease_min_seconds=1.0,
            lease_seconds=float(LONGEST_LEASE),
            priority_levels=LEVELS,
            ordering="none",
        ),
    )

    def __init__(self, url: str) -> None:
        self._options = read(url)
        self.url = self._options.shown
        self._address = parse_url(url)
        self._client = Client(self._options)
        self._names = Names(self._options.prefix)
        self._queues = Queues(self._client, self._names)
        self._lock = threading.Lock()
        self._bus: QueueBus | MuteBus | None = None
        self._consumers: WeakSet[SqsConsumer] = WeakSet()
        self._limit = 0
        self._set_limit()
        try:
            self._client.check()
        except BaseException:
            self._client.close()
            raise

    def _set_limit(self) -> None:
        """The features with the limit of the queues as far as they are known."""
        limit = self._queues.limit
        if limit != self._limit:
            self._limit = limit
            limits = replace(SqsBroker.features.limits, message_bytes=sqs_body.room(limit))
            features = replace(SqsBroker.features, limits=limits)
            if not self._options.mailboxes:
                features = replace(features, monitoring=Support.NONE, remote_control=Support.NONE)
            self.features = with_limit(features, self._address)

    def declare(self, spec: QueueSpec) -> None:
        self._queues.declare(spec)
        self._set_limit()

    # Publish ---------------------------------------------------------------------------------------------------

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        check_envelopes(envelopes, self.features, self.url)
        groups: dict[tuple[str, int], list[Envelope]] = {}
        for envelope in envelopes:
            groups.setdefault((envelope.queue, envelope.priority), []).append(envelope)
        failed: dict[int, Exception] = {}
        news: dict[str, int] = {}
        # High priorities first: what comes after them tells of levels that did not exist.
        for queue, level in sorted(groups, key=lambda key: (key[0], -key[1])):
            failed |= self._publish(queue, level, groups[queue, level], news)
            if level == 0:
                news.pop(queue, None)
        for queue, level in news.items():
            self._ring(queue, level)
        if failed:
            _raise(envelopes, failed, self.url)

    def _publish(
        self, queue: str, level: int, envelopes: Sequence[Envelope], news: dict[str, int]
    ) -> dict[int, Exception]:
        """id of an envelope → why it was not published. `news`: queue → a level of it that did not exist."""
        told = news.get(queue, 0)
        try:
            place, is_new = self._place(queue, level)
        except QnbError as error:
            return {id(envelope): error for envelope in envelopes}
        if is_new:
            news[queue] = level
        self._set_limit()
        check_envelopes(envelopes, self.features, self.url)  # once the limit of this queue is known
        made = [(e, *entry(self._options, place, e.body, e.delay, 0, told)) for e in envelopes]
        batches = chunks((((e, body), size) for e, body, size in made), self._options.message_size)
        send: Callable[[Any], dict[int, Exception]] = lambda batch: self._send(place, batch)  # noqa: E731
        if place.fifo and self._options.group:
            answers = [self._guarded(send, batch) for batch in batches]  # one after the other: their order is kept
        else:
            answers = self._client.each(send, batches)
        failed: dict[int, Exception] = {}
        for batch, answer in zip(batches, answers, strict=True):
            failed |= {id(e): answer for e, _ in batch} if isinstance(answer, Exception) else answer
        return failed

    def _guarded(self, send: Callable[[Any], dict[int, Exception]], batch: Any) -> Any:
        try:
            return send(batch)
        except QnbError as error:
            return error

    def _place(self, queue: str, level: int) -> tuple[Place, bool]:
        """Where to send; and whether it is a level that did not exist."""
        found = self._queues.find(queue, level)
        if found is not None:
            return found, False
        if level:
            self._queues.open(queue)
        return self._queues.open(queue, level), level > 0

    def _send(self, place: Place, batch: Sequence[tuple[Envelope, dict[str, Any]]]) -> dict[int, Exception]:
        entries = [body for _, body in batch]
        for pause in _MADE_SECONDS:
            try:
                failed = self._client.batch("send_message_batch", place.url, entries)
                break
            except QueueGone:  # removed under way; or just made, which SQS does not know everywhere at once
                time.sleep(pause)
                self._queues.forget(place)
                place = self._queues.open(place.queue, place.level)
            except PayloadTooLarge:  # servers that are not AWS's may take smaller batches
                if len(batch) == 1:
                    raise
                half = len(batch) // 2
                return self._send(place, batch[:half]) | self._send(place, batch[half:])
        else:
            raise BrokerError(f"queue {place.queue} is removed again and again: see who does it")
        reason = "queue {} refuses it: {}"
        return {id(batch[n][0]): BrokerError(reason.format(place.queue, code)) for n, code in failed.items()}

    def _ring(self, queue: str, level: int) -> None:
        """Tell a consumer that waits at the queue of a level that is new; one that is busy looks by itself."""
        base = self._queues.open(queue)
        try:
            if self._queues.waiting(base) == 0:
                bell: dict[str, Any] = {"MessageBody": sqs_body.bell(level)}
                if base.fifo:
                    bell |= {k: v for k, v in entry(self._options, base, b"")[0].items() if k != "MessageBody"}
                self._client.call("send_message", QueueUrl=base.url, **bell)
        except (QueueGone, QnbError) as error:
            log.debug("queue %s: nobody is told of its new level: %s", queue, error)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    # -----------------------------------------------------------------------------------------------------------

    def consume(self, queues: Sequence[str], *, prefetch: int) -> SqsConsumer:
        consumer = SqsConsumer(self._client, self._queues, queues, prefetch)
        with self._lock:
            self._consumers.add(consumer)
        return consumer

    def depth(self, queue: str) -> int | None:
        """As SQS counts, which may lag behind by a minute."""
        return sum(self._queues.waiting(place) or 0 for place in self._queues.levels(queue))

    def queues(self, prefix: str = "") -> Sequence[str]:
        return [name for name in self._queues.all() if name.startswith(prefix)]

    def purge(self, queue: str) -> int:
        """By receiving and deleting: PurgeQueue takes leased messages too, and for a minute new ones.

        Messages that SQS itself delays cannot be had before they are due, and stay.
        """
        count = 0
        for place in self._queues.levels(queue):
            drain: Callable[[Place], int] = self._drain
            answers = self._client.each(drain, [place] * 4)
            for answer in answers:
                if isinstance(answer, QnbError):
                    raise answer
                count += answer if isinstance(answer, int) else 0
            if left := self._queues.waiting(place):
                log.warning(
                    "purge of %s: SQS still counts %d, delayed ones or its count lags; purge again", queue, left
                )
        return count

    def _drain(self, place: Place) -> int:
        count = 0
        most: dict[str, Any] = {"MaxNumberOfMessages": 10, "WaitTimeSeconds": 0, "VisibilityTimeout": 60}
        while messages := self._client.call("receive_message", QueueUrl=place.url, **most).get("Messages", []):
            self._client.batch(
                "delete_message_batch", place.url, [{"ReceiptHandle": m["ReceiptHandle"]} for m in messages]
            )
            count += sum(not sqs_body.read(message["Body"]).bell for message in messages)
        return count

    def remove(self, queue: str) -> None:
        self._queues.remove(queue)

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        """The newest of the first 2,000. SQS lets nobody look but by receiving: two at once see a part each."""
        url = self._queues.dead(queue, make=False)
        if url is None:
            return []
        found: dict[str, tuple[float, int, DeadLetter]] = {}
        handles: list[str] = []
        try:
            while len(found) < _LOOK_LETTERS:
                messages = self._look(url)
                if not messages:
                    break
                for message in messages:
                    handles.append(message["ReceiptHandle"])
                    found[message["MessageId"]] = (_buried_at(message), len(found), _letter(queue, message))
        except QueueGone:
            return []
        finally:
            self._show(url, handles)
        newest = sorted(found.values(), key=lambda one: one[:2], reverse=True)
        return [letter for *_, letter in newest[:limit]]

    def _look(self, url: str) -> list[dict[str, Any]]:
        answer = self._client.call(
            "receive_message",
            QueueUrl=url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=_LOOK_SECONDS,
            WaitTimeSeconds=0,
            AttributeNames=["SentTimestamp"],
            MessageAttributeNames=["All"],
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def _show(self, url: str, handles: Sequence[str]) -> None:
        """They stay where they are: nobody else is kept from them."""
        entries = [{"ReceiptHandle": handle, "VisibilityTimeout": 0} for handle in handles]
        batches = chunks(((each, 1) for each in entries), 1000)
        if batches:
            self._client.each(lambda batch: self._client.batch("change_message_visibility_batch", url, batch), batches)

    def bus(self) -> Bus:
        with self._lock:
            if self._bus is None and not self._options.mailboxes:
                self._bus = MuteBus()
            elif self._bus is None:
                self._bus = QueueBus(SqsMailboxes(self._client, self._names, self._queues))
            return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        """No backend lives on SQS."""
        return None

    def stats(self) -> dict[str, Any]:
        """What SQS charges for: {"requests": in all, operation: how many of it, …}."""
        return self._client.stats()

    def close(self) -> None:
        with self._lock:
            bus, self._bus = self._bus, None
            consumers = list(self._consumers)
        if bus is not None:
            bus.close()
        end = time.monotonic() + _REST_SECONDS
        for consumer in consumers:
            consumer.close()
        for consumer in consumers:
            consumer.rest(end - time.monotonic())
        self._client.close()


def _raise(envelopes: Sequence[Envelope], failed: dict[int, Exception], url: str) -> None:
    """The error for what was not published: the server's own where that is all of it."""
    rest = [envelope for envelope in envelopes if id(envelope) in failed]
    first = next(iter(failed.values()))
    if len(rest) == len(envelopes) and type(first) is not BrokerError:
        raise first
    raise PublishFailed(f"{len(rest)} of {len(envelopes)} messages are not on {url}: {first}", rest) from first


def _buried_at(message: dict[str, Any]) -> float:
    said = message.get("MessageAttributes", {}).get(BURIED, {}).get("StringValue")
    return float(said) if said else float(message.get("Attributes", {}).get("SentTimestamp", 0)) / 1000


def _letter(queue: str, message: dict[str, Any]) -> DeadLetter:
    said = message.get("MessageAttributes", {}).get(REASON, {}).get("StringValue")
    reason = said or "received too often without being settled, says the redrive policy of the queue"
    return DeadLetter(queue, sqs_body.read(message["Body"]).data, reason)
