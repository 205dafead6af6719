"""Pulls from the subscriptions of a consumer, and what is sent back to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qnb.brokers.base import Delivery
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.leases import Held
from qnb.brokers.pubsub.link import ACKNOWLEDGE, MODIFY, PULL, Gone, Link, Refused
from qnb.brokers.pubsub.shelf import COUNT, HINT
from qnb.brokers.pubsub.types import grpc
from qnb.errors import BrokerError

if TYPE_CHECKING:
    from qnb.brokers.pubsub.keeper import Keeper

log = logging.getLogger("qnb")

# So many ids fit into one request, and one pull takes no more.
ACK_IDS = PULL_MESSAGES = 1_000
SEND_SECONDS = 5.0
# How long a pull waits at the server. It cannot be called back without risk: what the server is sending in that
# moment would lie until its deadline ends. The emulator sends for longer, so there pulls are short.
PULL_SECONDS, EMULATOR_PULL_SECONDS = 20.0, 0.5
# The server ends a pull that found nothing this long before its deadline.
PULL_MARGIN = 1.0
# For a pull that is to tell what is there, and not to wait.
QUICK_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class Source:
    """A subscription of a queue. `deadline` is what it gives by itself; None when not known."""

    queue: str
    level: int
    name: str
    deadline: int | None
    waiting: Any = None
    quick: Any = None
    retry_at: float = 0.0
    gone: bool = False
    dropped: bool = False


@dataclass(slots=True)
class Catch:
    """What a pull brought, or why it brought nothing; and which parts of the queue it told of. `doubtful`: what came
    went back, for it may have been sent long ago."""

    deliveries: list[Delivery]
    hints: list[str]
    trouble: Any = None
    quick: bool = False
    doubtful: bool = False


class Puller:
    """Pulls, and tells `accept` on a thread of grpc what came. Safe from any thread."""

    def __init__(self, link: Link, keeper: Keeper, accept: Callable[[Source, Catch], None]) -> None:
        self._link, self._keeper, self._accept = link, keeper, accept
        self._seconds = EMULATOR_PULL_SECONDS if link.target.emulated else PULL_SECONDS
        self.deadline = 0  # seconds that the server is to give what is pulled

    def pull(self, source: Source, room: int, *, quick: bool) -> None:
        """Have one pull, of the waiting or of the quick kind, at the server."""
        request = types.PullRequest(
            subscription=self._link.subscription(source.name),
            max_messages=min(room, PULL_MESSAGES),
            return_immediately=quick,
        )
        future = self._link.start(PULL, request, QUICK_SECONDS if quick else self._seconds + PULL_MARGIN)
        if quick:
            source.quick = future
        else:
            source.waiting = future
        self._keeper.pending(future)
        future.add_done_callback(lambda done: self._arrived(source, done, quick=quick))

    def _arrived(self, source: Source, future: Any, *, quick: bool) -> None:
        catch = Catch([], [], quick=quick)
        modified = self._look_at(source, future, catch)
        if modified is None:
            self._hand_over(source, future, catch)
        else:
            modified.add_done_callback(lambda _: self._hand_over(source, future, catch))

    def _hand_over(self, source: Source, future: Any, catch: Catch) -> None:
        try:
            self._accept(source, catch)
        finally:  # not before: who closes waits for it, to give back what it brought
            self._keeper.over(future)

    def _look_at(self, source: Source, future: Any, catch: Catch) -> Any:
        """What came is unpacked; the request that sets its deadline at the server, if there is one."""
        try:
            self._unpack(source, future.result().received_messages, catch)
        except grpc.RpcError as error:
            catch.trouble = error
        except grpc.FutureCancelledError:
            pass
        if catch.deliveries and not self._keeper.fresh():
            # Its deadline may be over on the server. If it is not, the next one gets it a little sooner.
            self._send(MODIFY, source, [delivery.token.ack_id for delivery in catch.deliveries])
            catch.deliveries, catch.doubtful = [], True
        if not catch.deliveries or self.deadline == source.deadline:
            return None
        # First, for the server must not wait longer for a holder that dies. Should it fail, it does.
        return self._send(MODIFY, source, [delivery.token.ack_id for delivery in catch.deliveries], self.deadline)

    def _unpack(self, source: Source, received: Iterable[Any], catch: Catch) -> None:
        done: list[str] = []
        for each in received:
            data = each.message
            before = 0
            if data.attributes:
                if HINT in data.attributes:
                    catch.hints.append(data.attributes[HINT])
                    done.append(each.ack_id)
                    continue
                count = data.attributes.get(COUNT, "")
                before = int(count) if count.isdecimal() else 0
            held = Held(source, each.ack_id)
            catch.deliveries.append(Delivery(source.queue, data.data, before + max(1, each.delivery_attempt), held))
        if done:
            self._send(ACKNOWLEDGE, source, done)

    # What is sent back -----------------------------------------------------------------------------------------

    def acknowledge(self, held: Sequence[Held]) -> None:
        """Done with."""
        self._each(ACKNOWLEDGE, held)

    def modify(self, held: Sequence[Held], seconds: int) -> None:
        """The server's deadlines now end so many seconds from now."""
        self._each(MODIFY, held, seconds)

    def _each(self, method: Any, held: Sequence[Held], seconds: int = 0) -> None:
        by_source: dict[Source, list[str]] = {}
        for each in held:
            by_source.setdefault(each.source, []).append(each.ack_id)
        for source, ids in by_source.items():
            for start in range(0, len(ids), ACK_IDS):
                try:
                    self._link.call(method, self._request(method, source, ids[start : start + ACK_IDS], seconds))
                except Gone:
                    pass  # the queue was removed with all that was in it
                except Refused as error:  # exactly once: some of these deadlines were over on the server
                    log.debug("%s", error)

    def _send(self, method: Any, source: Source, ids: list[str], seconds: int = 0) -> Any:
        """One try, without a wait for the answer: a future; None when the broker was closed in this moment."""
        try:
            return self._link.start(method, self._request(method, source, ids, seconds), SEND_SECONDS)
        except BrokerError:
            return None

    def _request(self, method: Any, source: Source, ids: list[str], seconds: int) -> Any:
        name = self._link.subscription(source.name)
        if method is ACKNOWLEDGE:
            return types.AcknowledgeRequest(subscription=name, ack_ids=ids)
        return types.ModifyAckDeadlineRequest(subscription=name, ack_ids=ids, ack_deadline_seconds=seconds)
