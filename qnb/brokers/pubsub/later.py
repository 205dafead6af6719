"""Delayed messages on Pub/Sub, which has no delay of its own.

They wait in a topic and subscription beside the queue's. Whoever consumes the queue pulls them as well: what is due
soon is held here and published to the queue in time; what is due later is left to the server, whose deadline of the
delivery, up to ten minutes, is the timer: it is delivered again then. So nothing fills up, what is due sooner
overtakes, and when the holder dies the server gives out again what it held.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.link import ACKNOWLEDGE, MODIFY, PULL, Gone
from qnb.brokers.pubsub.shelf import COUNT, DELAY, LATER, LEVEL, LONGEST_DEADLINE, SHORTEST_DEADLINE, Shelf, message
from qnb.brokers.pubsub.types import grpc

if TYPE_CHECKING:
    from qnb.brokers.pubsub.keeper import Keeper

# Held here when due within so many seconds; well within the deadline that the subscription gives.
NEAR_SECONDS = 5.0
# No more are held, however soon they are due; what is beyond comes back from the server, to the second.
NEAR_MESSAGES = 5_000
BATCH = 1_000
PULL_SECONDS, EMULATOR_PULL_SECONDS, PULL_MARGIN = 20.0, 0.5, 1.0
_NEVER = float("inf")


class Later:
    """The delayed messages of one queue, in the keeper's thread."""

    def __init__(self, shelf: Shelf, queue: str, keeper: Keeper) -> None:
        self._shelf, self._queue, self._keeper, self._link = shelf, queue, keeper, shelf.link
        self._name = self._link.subscription(shelf.name(queue, LATER))
        self._pull_seconds = EMULATOR_PULL_SECONDS if shelf.link.target.emulated else PULL_SECONDS
        self._lock = threading.RLock()
        self._arrived: deque[Any] = deque()
        self._near: list[tuple[float, int, str, Any]] = []
        self._numbers = itertools.count()
        self._pull: Any = None
        self._retry_at = 0.0
        self._resting = False
        self.gone = False  # for good

    def tend(self, now: float) -> float:
        """Move what is due, sort what has arrived, have a pull wait. When to come again."""
        with self._lock:
            self._resting = False
            if self.gone:
                return _NEVER
            self._sort()
            self._move()
            if self._pull is None and now >= self._retry_at:
                self._start()
            at = now + self._near[0][0] - time.time() if self._near else _NEVER
            return min(at, self._retry_at) if self._retry_at > now else at

    def rest(self, now: float) -> float:
        """Nobody consumes the queue here: what is held goes back."""
        with self._lock:
            self._resting = True
            self._sort()
            back, self._near = self._near, []
            self._modify({0: [ack_id for _, _, ack_id, _ in back]})
        return _NEVER

    def drop(self) -> int:
        """The queue is purged or removed; how many were held here."""
        with self._lock:
            self.gone = True
            ids = [each.ack_id for each in self._take_arrived()] + [ack_id for _, _, ack_id, _ in self._near]
            self._near = []
            self._acknowledge(ids)
            return len(ids)

    # -----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        request = types.PullRequest(subscription=self._name, max_messages=BATCH)
        self._pull = self._link.start(PULL, request, self._pull_seconds + PULL_MARGIN)
        self._keeper.pending(self._pull)
        self._pull.add_done_callback(self._done)

    def _done(self, future: Any) -> None:
        """On a thread of grpc, which is not to wait for the lock."""
        got: Sequence[Any] = ()
        self._retry_at = 0.0
        try:
            got = future.result().received_messages
        except grpc.FutureCancelledError:
            pass
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                self.gone = True  # who makes it anew tells
            elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self._retry_at = time.monotonic() + 0.5
        self._arrived.extend(got)
        self._pull = None
        if got and (self._resting or self.gone):
            self._keeper.soon(self._put_back)
        self._keeper.ring(self._retry_at)
        self._keeper.over(future)

    def _put_back(self) -> None:
        if self.gone:
            self.drop()
        else:
            self.rest(0.0)

    def _take_arrived(self) -> list[Any]:
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def _sort(self) -> None:
        """What has arrived is held when due soon, and left to the server otherwise."""
        arrived = self._take_arrived()
        if not arrived:
            return
        now = time.time()
        far: dict[int, list[str]] = {}
        for each in arrived:
            data = each.message
            due = data.publish_time.seconds + data.publish_time.nanos * 1e-9 + _seconds(data.attributes.get(DELAY, ""))
            if due - now <= NEAR_SECONDS and len(self._near) < NEAR_MESSAGES:
                heapq.heappush(self._near, (due, next(self._numbers), each.ack_id, data))
            else:
                early = NEAR_SECONDS - 1.0 if due - now > NEAR_SECONDS else 0.0
                seconds = min(LONGEST_DEADLINE, max(1, int(due - now - early)))
                far.setdefault(seconds, []).append(each.ack_id)
        self._modify(far)

    def _move(self) -> None:
        """To the queue, what is due."""
        now = time.time()
        due: list[tuple[str, Any]] = []
        while self._near and self._near[0][0] <= now:
            due.append(heapq.heappop(self._near)[2:])
        if not due:
            return
        ids = [ack_id for ack_id, _ in due]
        try:
            self._modify({SHORTEST_DEADLINE: ids})
        except Gone:  # removed, with all that was in it
            return
        levels: dict[int, list[Any]] = {}
        for _, data in due:
            level = data.attributes.get(LEVEL, "")
            attributes = {COUNT: data.attributes[COUNT]} if COUNT in data.attributes else {}
            levels.setdefault(int(level) if level.isdecimal() else 0, []).append(message(data.data, attributes))
        for level in sorted(levels, reverse=True):
            self._shelf.put(self._queue, level, levels[level])
        self._acknowledge(ids)

    def _modify(self, groups: dict[int, list[str]]) -> None:
        for seconds, ids in groups.items():
            for start in range(0, len(ids), BATCH):
                some = ids[start : start + BATCH]
                request = types.ModifyAckDeadlineRequest(
                    subscription=self._name, ack_ids=some, ack_deadline_seconds=seconds
                )
                self._link.call(MODIFY, request)

    def _acknowledge(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), BATCH):
            request = types.AcknowledgeRequest(subscription=self._name, ack_ids=ids[start : start + BATCH])
            try:
                self._link.call(ACKNOWLEDGE, request)
            except Gone:
                return


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
