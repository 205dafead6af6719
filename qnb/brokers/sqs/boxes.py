"""Mailboxes for the bus: a queue a peer, which keeps notes for an hour."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from qnb.brokers.bus import MailboxGone
from qnb.brokers.sqs import body as sqs_body
from qnb.brokers.sqs.client import Client, DeletedRecently, QueueExists, QueueGone, chunks
from qnb.brokers.sqs.names import ANEW, BUS, Names, escape_peer, is_cut, unescape_peer
from qnb.brokers.sqs.queues import Queues
from qnb.errors import AccessDenied, QnbError

log = logging.getLogger("qnb")

# A peer that was found to be away is not looked for again so soon.
_AWAY_SECONDS = 1.0
# The whole name of a peer whose mailbox cannot have it all.
_PEER_TAG = "qnb-peer"
_OPTIONS = {"MessageRetentionPeriod": "3600", "VisibilityTimeout": "30"}


class SqsMailboxes:
    """See Mailboxes of the bus."""

    ordered = False

    def __init__(self, client: Client, names: Names, queues: Queues) -> None:
        self._client, self._names, self._queues = client, names, queues
        self.message_bytes = sqs_body.room(min(client.options.message_size, 256 * 1024))
        self._lock = threading.Lock()
        self._urls: dict[str, str] = {}
        self._away: dict[str, float] = {}

    def make(self, name: str) -> str:
        try:
            return self._make(name)
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; outcomes, monitoring and control need queues named {self._names.prefix}{BUS}*, and on them "
                "the rights sqs:CreateQueue, DeleteQueue, ListQueues, GetQueueUrl, GetQueueAttributes, SendMessage, "
                "ReceiveMessage and DeleteMessage. Or do without: add mailboxes=no to the URL, and name a backend from "
                "which outcomes are read"
            ) from error

    def _make(self, name: str) -> str:
        for url in self._all(name):
            self.remove(url)
        wanted = self._names.mailbox(name)
        attributes = {**_OPTIONS, "MaximumMessageSize": str(min(self._client.options.message_size, 256 * 1024))}
        tags = dict(self._client.options.tags)
        if is_cut(wanted):
            tags[_PEER_TAG] = escape_peer(name)
        more: dict[str, Any] = {"tags": tags} if tags else {}
        for attempt in range(3):
            queue = wanted if attempt == 0 else f"{wanted}{ANEW}{os.urandom(1).hex()}"
            try:
                url = self._client.call(
                    "create_queue", QueueName=queue, Attributes=attributes | self._client.options.attributes, **more
                )["QueueUrl"]
                break
            except (DeletedRecently, QueueExists) as error:
                log.debug("mailbox %s: %s", queue, type(error).__name__)
                problem = error
        else:
            raise problem
        with self._lock:
            self._urls[name] = url
            self._away.pop(name, None)
        return str(url)

    def _all(self, name: str) -> list[str]:
        """The mailboxes of one peer: one, unless something went wrong."""
        wanted = self._names.mailbox(name)
        found = self._queues.listed(wanted)
        return [url for queue, url in found if queue == wanted or _is_anew(queue, wanted)]

    def find(self, prefix: str = "") -> Mapping[str, str]:
        wanted = self._names.mailbox(prefix)
        if is_cut(wanted) or prefix.endswith("-"):  # how that would be written depends on what follows
            wanted = self._names.mailbox("")
        found: dict[str, str] = {}
        for queue, url in self._queues.listed(wanted):
            name = self._names.peer(queue) or self._tagged(url)
            if name is not None and name.startswith(prefix):
                found[name] = url
        return found

    def _tagged(self, url: str) -> str | None:
        """The name of a peer that is longer than its mailbox's."""
        with self._lock:
            known = next((name for name, other in self._urls.items() if other == url), None)
        if known is not None:
            return known
        try:
            text = self._client.call("list_queue_tags", QueueUrl=url).get("Tags", {}).get(_PEER_TAG)
        except (QnbError, QueueGone) as error:
            log.debug("mailbox %s: whose it is cannot be read: %s", url, error)
            return None
        if text is None:
            return None
        with self._lock:
            self._urls[unescape_peer(text)] = url
        return unescape_peer(text)

    def age(self, address: str) -> float | None:
        try:
            said = self._client.call("get_queue_attributes", QueueUrl=address, AttributeNames=["CreatedTimestamp"])
        except QueueGone:
            return None
        return max(0.0, time.time() - float(said["Attributes"]["CreatedTimestamp"]))

    def _url(self, name: str) -> str | None:
        with self._lock:
            url = self._urls.get(name)
            if url is not None:
                return url
            if self._away.get(name, 0.0) > time.monotonic():
                return None
        try:
            url = self._client.call("get_queue_url", QueueName=self._names.mailbox(name))["QueueUrl"]
        except QueueGone:
            found = self._all(name)
            url = found[-1] if found else None
        with self._lock:
            if url is None:
                if len(self._away) > 1000:
                    self._away.clear()
                self._away[name] = time.monotonic() + _AWAY_SECONDS
            else:
                if len(self._urls) > 10_000:
                    self._urls.clear()
                self._urls[name] = url
        return url

    def send_many(self, messages: Sequence[tuple[str, bytes]]) -> Collection[str]:
        by_name: dict[str, list[bytes]] = defaultdict(list)
        for name, data in messages:
            by_name[name].append(data)
        gone = set()
        answers = self._client.each(self._send, list(by_name.items()))
        for name, answer in zip(by_name, answers, strict=True):
            if isinstance(answer, QnbError):
                raise answer
            if not answer:
                gone.add(name)
        return gone

    def _send(self, item: tuple[str, list[bytes]]) -> bool:
        """Whether there was a mailbox."""
        name, bodies = item
        entries = [({"MessageBody": sqs_body.write(data)}, sqs_body.text_bytes(data)) for data in bodies]
        for again in (False, True):
            url = self._url(name)
            if url is None:
                return False
            try:
                for batch in chunks(entries, self._client.options.message_size):
                    if failed := self._client.batch("send_message_batch", url, batch):
                        log.warning("notes to %s are refused: %s", name, ", ".join(sorted(set(failed.values()))))
                return True
            except QueueGone:
                with self._lock:
                    self._urls.pop(name, None)
                    if again:
                        self._away[name] = time.monotonic() + _AWAY_SECONDS
        return False

    def receive(self, address: str, timeout: float) -> Sequence[bytes]:
        wait = min(20, max(1, round(timeout)) if timeout > 0 else 0)
        try:
            answer = self._client.call(
                "receive_message", 0.0, QueueUrl=address, MaxNumberOfMessages=10, WaitTimeSeconds=wait
            )
        except QueueGone as error:
            raise MailboxGone(address) from error
        messages = answer.get("Messages", ())
        if messages:
            self._delete(address, [{"ReceiptHandle": message["ReceiptHandle"]} for message in messages])
        return [sqs_body.read(message["Body"]).data for message in messages]

    def _delete(self, address: str, entries: list[dict[str, Any]]) -> None:
        """In the background: who waits for the notes need not wait for this."""

        def delete() -> None:
            try:
                self._client.batch("delete_message_batch", address, entries)
            except (QnbError, QueueGone) as error:  # they come again, and are known then
                log.debug("notes are not deleted: %s", error)

        try:
            self._client.pool.submit(delete)
        except RuntimeError:  # on the way out
            delete()

    def remove(self, address: str) -> None:
        with self._lock:
            for name in [name for name, url in self._urls.items() if url == address]:
                del self._urls[name]
        with suppress(QueueGone):
            self._client.call("delete_queue", 1.0, QueueUrl=address)


def _is_anew(queue: str, wanted: str) -> bool:
    rest = queue.removeprefix(wanted + ANEW)
    return len(rest) == 2 and rest.isalnum() and queue.startswith(wanted + ANEW)
