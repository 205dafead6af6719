"""The long polls of a consumer. Each is one request in a thread of its own, which nobody can call off: a consumer that
is woken goes, and what the poll brings is kept for its next receive, or sent back when none comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from qnb.brokers.sqs.client import Client, QueueGone
from qnb.brokers.sqs.queues import Place
from qnb.errors import BrokerUnavailable, QnbError

log = logging.getLogger("qnb")

# An answer that comes so long after the poll should have ended is old: the process may have been stopped meanwhile.
_TRANSIT_SECONDS = 1.0


class Source:
    """A place that a consumer takes from, and its polls."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.polls = 0
        self.ends = 0.0  # when the last of them does
        self.empty = 0  # polls in a row that brought nothing
        self.width = 1  # polls that are worth having at once
        self.dropped = False
        self.failures = 0
        self.blocked_until = 0.0

    def wait(self, longest: int) -> int:
        """How long the next poll may take: the longer nothing came, the longer, as each is paid for."""
        return int(min(longest, 2 ** min(self.empty, 5)))


class Polls:
    """Runs polls for a consumer, which is told of each: `arrived(source, messages, received, hidden_until)`."""

    def __init__(
        self,
        client: Client,
        arrived: Callable[[Source, list[dict[str, Any]], float, float], None],
        failed: Callable[[QnbError], None],
    ) -> None:
        self._client, self._arrived, self._failed = client, arrived, failed
        self._changed = threading.Condition()

    def start(self, source: Source, count: int, wait: int, hide: int) -> None:
        """A poll in a thread."""
        with self._changed:
            source.polls += 1
            source.ends = max(source.ends, time.monotonic() + wait)
        arguments = (source, count, wait, hide)
        threading.Thread(target=self._run, args=arguments, name="qnb sqs poll", daemon=True).start()

    def _run(self, source: Source, count: int, wait: int, hide: int) -> None:
        try:
            self.poll(source, count, wait, hide)
        finally:
            with self._changed:
                source.polls -= 1
                self._changed.notify_all()
            self._arrived(source, [], 0.0, 0.0)

    def poll(self, source: Source, count: int, wait: int, hide: int) -> int:
        """One request; how many messages it brought."""
        begun = time.monotonic()
        try:
            answer = self._client.call(
                "receive_message",
                0.0,
                QueueUrl=source.place.url,
                MaxNumberOfMessages=count,
                WaitTimeSeconds=wait,
                VisibilityTimeout=hide,
                AttributeNames=["ApproximateReceiveCount"],
            )
        except QueueGone:
            source.dropped = True
            return 0
        except BrokerUnavailable as error:
            if source.failures == 0 and not (source.dropped or self._client.closed):
                log.warning("queue %s: %s; trying again", source.place.queue, error)
            source.failures += 1
            source.blocked_until = time.monotonic() + min(0.1 * 2**source.failures, 5.0)
            return 0
        except QnbError as error:
            self._failed(error)
            source.blocked_until = time.monotonic() + 1.0
            return 0
        source.failures = 0
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        source.empty = 0 if messages else source.empty + (wait > 0)
        if len(messages) == 10:
            source.width = min(source.width * 2, self._client.options.connections)
        elif not messages:
            source.width = 1
        if messages:
            received = min(time.monotonic(), begun + wait + _TRANSIT_SECONDS)
            self._arrived(source, messages, received, received + hide)
        return len(messages)

    def settle(self, sources: list[Source], longest: float) -> None:
        """Wait for polls that are about to end."""
        end = time.monotonic() + longest
        with self._changed:
            while (now := time.monotonic()) < end and any(s.polls and s.ends < end for s in sources):
                self._changed.wait(end - now)
