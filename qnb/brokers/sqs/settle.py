"""What is done to messages that were received: deleted, hidden for longer, sent anew, buried. In batches of 10."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qnb.brokers.sqs import body as sqs_body
from qnb.brokers.sqs.client import Client, QueueGone, chunks
from qnb.brokers.sqs.options import LONGEST_LEASE, Options
from qnb.brokers.sqs.queues import Place, Queues
from qnb.errors import QnbError

log = logging.getLogger("qnb")

# What SQS delays by itself.
LONGEST_DELAY = 900
REASON, QUEUE, BURIED = "qnb-reason", "qnb-queue", "qnb-at"


class Held:
    """A received message. It is ours until `deadline`, our own lease, and `hidden_until`, as the server keeps it."""

    __slots__ = ("body", "count", "deadline", "handle", "hidden_until", "order", "place", "received", "sized", "told")

    def __init__(self, place: Place, message: dict[str, Any], received: float, hidden_until: float, order: int) -> None:
        text = message["Body"]
        self.place = place
        self.body = sqs_body.read(text)
        self.sized = len(text)
        self.handle: str = message["ReceiptHandle"]
        self.count = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
        self.received = received
        self.hidden_until = hidden_until
        self.deadline = math.inf
        self.order = order
        self.told = False

    def __lt__(self, other: Held) -> bool:
        return (-self.place.level, self.order) < (-other.place.level, other.order)

    @property
    def end(self) -> float:
        """From then on it may be somebody else's."""
        return min(self.deadline, self.hidden_until)

    @property
    def deliveries(self) -> int:
        """How often it was handed out and not released, this time included."""
        held_back = 1 if self.place.fifo and self.body.far and self.count > 1 else 0  # received before it was due
        return self.body.failures + self.count - held_back


def entry(
    options: Options, place: Place, data: bytes, delay: float = 0.0, failures: int = 0, level: int = 0
) -> tuple[dict[str, Any], int]:
    """A message as it is sent, and its size. `level`: a new one that it tells of."""
    due = time.time() + delay if delay > 0 else 0.0
    far = delay > (0 if place.fifo else LONGEST_DELAY)  # a FIFO queue delays no single message
    made: dict[str, Any] = {"MessageBody": sqs_body.write(data, failures, due, far, level)}
    if place.fifo:
        made["MessageGroupId"] = options.group or uuid.uuid4().hex
        made["MessageDeduplicationId"] = uuid.uuid4().hex
    elif delay >= 1:
        made["DelaySeconds"] = min(LONGEST_DELAY, int(delay))
    return made, len(made["MessageBody"]) + 8


class Settler:
    """Does it. Methods return what could not be done, as (message, error) pairs. Safe from any thread."""

    def __init__(self, client: Client, queues: Queues) -> None:
        self._client, self._queues = client, queues
        self._options = client.options

    def delete(self, messages: Iterable[Held]) -> list[tuple[Held, QnbError]]:
        """Off the server."""
        return self._each(messages, self._delete)

    def hide(self, messages: Iterable[Held], seconds: float) -> list[tuple[Held, QnbError]]:
        """Nobody else gets them for so long (whole seconds); 0: anybody does at once, and it counts as a failure."""
        return self._each(messages, lambda batch: self._hide(batch, seconds))

    def send_anew(self, messages: Iterable[Held], delay: float = 0.0) -> list[tuple[Held, QnbError]]:
        """Back to the end of their queues, as if they had not been received: SQS can only count up.

        In a FIFO queue whose order is kept, they stay where they are, and it counts.
        """
        messages = list(messages)
        back = [message for message in messages if message.place.fifo and self._options.group]
        anew = [message for message in messages if not (message.place.fifo and self._options.group)]
        return self._each(anew, lambda batch: self._send_anew(batch, delay)) + self.hide(back, delay)

    def bury(self, messages: Iterable[Held], reason: str) -> list[tuple[Held, QnbError]]:
        """To the dead letters."""
        return self._each(messages, lambda batch: self._bury(batch, reason))

    def _each(self, messages: Iterable[Held], work: Callable[[Sequence[Held]], None]) -> list[tuple[Held, QnbError]]:
        by_url: dict[str, list[Held]] = {}
        for message in sorted(messages):
            by_url.setdefault(message.place.url, []).append(message)
        batches = [
            batch
            for group in by_url.values()
            for batch in chunks(((message, message.sized + 24) for message in group), self._options.message_size)
        ]
        if not batches:
            return []
        answers = self._client.each(work, batches)
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, QueueGone):
                log.debug("%d messages are gone with their queue %s", len(batch), batch[0].place.queue)
        return [
            (message, answer)
            for batch, answer in zip(batches, answers, strict=True)
            if isinstance(answer, QnbError)
            for message in batch
        ]

    def _delete(self, batch: Sequence[Held]) -> None:
        handles = [{"ReceiptHandle": message.handle} for message in batch]
        if failed := self._client.batch("delete_message_batch", batch[0].place.url, handles):
            log.debug("not deleted, since somebody else has them: %s", failed)

    def _hide(self, batch: Sequence[Held], seconds: float) -> None:
        now = time.monotonic()
        entries: list[dict[str, Any]] = []
        for message in batch:
            most = LONGEST_LEASE - 1 - (now - message.received)
            if seconds > most and not message.told:
                message.told = True
                log.warning(
                    "a message of queue %s is held for 12 hours, and SQS keeps no lease for longer: another worker "
                    "will get it too. Split the task, or use another broker", message.place.queue,
                )  # fmt: skip
            whole = max(0, min(math.ceil(seconds), int(most)))
            entries.append({"ReceiptHandle": message.handle, "VisibilityTimeout": whole})
        failed = self._client.batch("change_message_visibility_batch", batch[0].place.url, entries)
        for number, message in enumerate(batch):
            gone = number in failed
            message.hidden_until = -math.inf if gone else now + entries[number]["VisibilityTimeout"]

    def _send_anew(self, batch: Sequence[Held], delay: float) -> None:
        place = batch[0].place
        entries = []
        for message in batch:
            left = max(delay, message.body.due - time.time())
            entries.append(entry(self._options, place, message.body.data, left, message.deliveries - 1)[0])
        failed = self._client.batch("send_message_batch", place.url, entries)
        if failed:
            log.warning("queue %s takes messages back only by counting them as failed: %s", place.queue, failed)
            self._hide([batch[number] for number in failed], delay)
        if sent := [message for number, message in enumerate(batch) if number not in failed]:
            self._delete(sent)

    def _bury(self, batch: Sequence[Held], reason: str) -> None:
        place = batch[0].place
        dead = self._queues.dead(place.queue)
        if dead is None:
            log.error("a message of queue %s is dropped, as there is no %s-dead: %s", place.queue, place.queue, reason)
            return self._delete(batch)
        attributes = {
            REASON: {"DataType": "String", "StringValue": allowed(reason)[:8000] or "?"},
            QUEUE: {"DataType": "String", "StringValue": allowed(place.queue)},
            BURIED: {"DataType": "Number", "StringValue": repr(time.time())},
        }
        grave = Place(place.queue, 0, dead)
        entries = []
        for message in batch:
            made = entry(self._options, grave, message.body.data, 0.0, message.deliveries)[0]
            entries.append({**made, "MessageAttributes": attributes})
        sizes = [(each, len(each["MessageBody"]) + 9000) for each in entries]
        for some in chunks(sizes, self._options.message_size):
            try:
                failed = self._client.batch("send_message_batch", dead, some)
            except QueueGone:
                self._queues.forget(Place(place.queue, 0, ""))
                failed = self._client.batch("send_message_batch", self._queues.dead(place.queue) or dead, some)
            if failed:
                log.error("queue %s-dead refuses a message (%s): %s", place.queue, failed, reason)
        self._delete(batch)
        return None


def allowed(text: str) -> str:
    """The text without the characters that SQS refuses."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c >= "\U00010000" else "?"
        for c in text
    )
