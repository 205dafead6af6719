"""Google Cloud Pub/Sub as a broker: a topic and a shared subscription for each queue and priority in use.

URLs: pubsub://project, with the application default credentials; gcpubsub://projects/project, as Celery writes it.
For an emulator pubsub://project@host:port, or ?emulator=host:port, or PUBSUB_EMULATOR_HOST.
Options: prefix (default qnb), lease (seconds), max_message (bytes), create (false: topics and subscriptions are made
by somebody else), ordering (true: the service keeps the order of a queue, and gives out the next only when the last
are acked), exactly_once (true: a delivery that was acked is never given out again), retention (seconds that a message
waits at most, 604800), endpoint (of the service, host:port), patience (seconds to ride out an absence of the server,
30).

Pulls are asked for, and wait at the server, only while somebody waits here, for as many messages as there is room for.
A streaming pull would be sent what nobody here has room for yet, and keep it from those who have.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from qnb.brokers.base import DEFAULT_LEASE, Bus, Consumer, DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.bus import QueueBus
from qnb.brokers.checks import check_envelopes, with_limit
from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.boxes import PubsubMailboxes
from qnb.brokers.pubsub.consumer import PubsubConsumer
from qnb.brokers.pubsub.keeper import Keeper
from qnb.brokers.pubsub.link import ACKNOWLEDGE, MODIFY, PATIENCE, PULL, SEEK, Gone, Link
from qnb.brokers.pubsub.shelf import (
    DEAD,
    DELAY,
    HINT,
    LATER,
    LEVEL,
    MESSAGE_BYTES,
    REASON,
    Shelf,
    ShelfOptions,
    batches,
    message,
)
from qnb.brokers.pubsub.target import target_of
from qnb.errors import BrokerUnavailable, ConfigurationError, PublishFailed, QnbError, Unsupported
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import Address, parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

_RETENTION = (600, 31 * 86_400)
_DRAIN = 1_000


class PubsubBroker:
    """See Broker of the ports."""

    scheme: ClassVar[str] = "pubsub"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.NATIVE,
        redelivery=Support.NATIVE,
        delay=Support.BUILT,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.BUILT,
        queue_depth=Support.NONE,
        survives_restart=Support.NATIVE,
        limits=Limits(
            message_bytes=MESSAGE_BYTES,
            batch_messages=1_000,
            delay_seconds=604_800,
            lease_min_seconds=1,
            priority_levels=10,
            ordering="none",
        ),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        options = _options(address)
        target = target_of(address)
        self.features = _features(with_limit(self.features, address), options, emulated=target.emulated)
        self._link = Link(target, address.number("patience", PATIENCE))
        try:
            self._shelf = Shelf(self._link, options)
            self._link.try_out()
        except BaseException:
            self._link.close()
            raise
        self._keeper = Keeper(self._shelf)
        self._bus: QueueBus | None = None
        self._closed = False

    def declare(self, spec: QueueSpec) -> None:
        lease = self._shelf.options.lease or spec.lease
        self._shelf.look()
        self._shelf.make(spec.name, lease=lease)
        if lease != DEFAULT_LEASE and lease != self._shelf.declared_lease(spec.name):
            self._shelf.set_lease(spec.name, lease)

    # Publishing ------------------------------------------------------------------------------------------------

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Nothing is sent when one of them is refused beforehand (Unsupported, PayloadTooLarge)."""
        check_envelopes(envelopes, self.features, self.url)
        longest = self._shelf.options.retention
        groups: dict[tuple[str, str | int], list[Envelope]] = {}
        for envelope in envelopes:
            if envelope.delay > longest:
                raise Unsupported(f"a delay of {envelope.delay:.0f} s: {self.url} keeps messages for {longest} s")
            groups.setdefault((envelope.queue, LATER if envelope.delay > 0 else envelope.priority), []).append(envelope)
        failed: list[Envelope] = []
        error: QnbError | None = None
        for (queue, part), group in sorted(groups.items(), key=lambda item: str(item[0][1]), reverse=True):
            refused, why = self._put(queue, part, group, away=isinstance(error, BrokerUnavailable))
            failed += refused
            error = why or error
        if error is not None:
            if len(failed) == len(envelopes) and isinstance(error, BrokerUnavailable | PermissionError | ValueError):
                raise error
            order = {id(envelope): number for number, envelope in enumerate(envelopes)}
            failed.sort(key=lambda envelope: order[id(envelope)])
            raise PublishFailed(f"{len(failed)} of {len(envelopes)} messages not taken: {error}", failed) from error

    def _put(
        self, queue: str, part: str | int, group: Sequence[Envelope], *, away: bool
    ) -> tuple[Sequence[Envelope], QnbError | None]:
        """The envelopes that were not taken, and why. `away`: the server was, a moment ago."""
        failed: list[Envelope] = []
        error: QnbError | None = None
        first = 0
        for batch in batches([_message(envelope) for envelope in group]):
            mine = group[first : first + len(batch)]
            first += len(batch)
            if away:
                failed += mine
                continue
            try:
                self._shelf.put(queue, part, batch)
            except QnbError as refusal:
                failed += mine
                error = refusal
                away = isinstance(refusal, BrokerUnavailable)
        return failed, error

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        self.publish_many(envelopes)
        return inbox.receive_many(limit, timeout)

    # The rest --------------------------------------------------------------------------------------------------

    def consume(self, queues: Sequence[str], *, prefetch: int) -> Consumer:
        return PubsubConsumer(self._shelf, self._keeper, queues, prefetch)

    def depth(self, queue: str) -> int | None:
        """None: the service does not tell, but to Cloud Monitoring, minutes later."""
        return None

    def queues(self, prefix: str = "") -> Sequence[str]:
        parts = [self._shelf.take_apart(name) for name in self._shelf.scan()]
        return sorted(found[0] for found in parts if found and not found[1] and found[0].startswith(prefix))

    def purge(self, queue: str) -> int:
        """What waits in the queue is taken and acked. Of what is delayed, the rest is dropped by Seek, uncounted."""
        names = [name for name in self._shelf.scan() if (self._shelf.take_apart(name) or ("",))[0] == queue]
        total = 0
        for name in names:
            part = (self._shelf.take_apart(name) or ("", DEAD))[1]
            if part == LATER:
                total += self._keeper.forget_later(queue) + self._drain(name)
                now = types.Timestamp()
                now.GetCurrentTime()
                self._ignore_gone(SEEK, types.SeekRequest(subscription=self._link.subscription(name), time=now))
                self._keeper.has_later(queue)
            elif part != DEAD:
                total += self._drain(name)
        return total

    def _drain(self, name: str) -> int:
        total = 0
        while received := self._pull(name, _DRAIN):
            self._ignore_gone(
                ACKNOWLEDGE,
                types.AcknowledgeRequest(
                    subscription=self._link.subscription(name), ack_ids=[each.ack_id for each in received]
                ),
            )
            total += sum(HINT not in each.message.attributes for each in received)
        return total

    def _pull(self, name: str, limit: int) -> Sequence[Any]:
        """What is there now. The service sometimes says nothing though there is something: it is asked again."""
        request = types.PullRequest(
            subscription=self._link.subscription(name), max_messages=limit, return_immediately=True
        )
        for _ in range(1 if self._link.target.emulated else 3):
            try:
                received: Sequence[Any] = self._link.call(PULL, request).received_messages
            except Gone:
                return ()
            if received:
                return received
        return ()

    def _ignore_gone(self, method: Any, request: Any) -> None:
        with suppress(Gone):
            self._link.call(method, request)

    def remove(self, queue: str) -> None:
        self._keeper.forget_later(queue)
        self._shelf.remove(queue)

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        """Newest first. All of them are taken for a moment and put back; who looks at the same time sees fewer."""
        name = self._shelf.name(queue, DEAD)
        found: list[Any] = []
        while received := self._pull(name, _DRAIN):
            found += received
        for start in range(0, len(found), _DRAIN):
            ids = [each.ack_id for each in found[start : start + _DRAIN]]
            request = types.ModifyAckDeadlineRequest(
                subscription=self._link.subscription(name), ack_ids=ids, ack_deadline_seconds=0
            )
            self._ignore_gone(MODIFY, request)
        found.sort(key=lambda each: _age(each.message), reverse=True)
        return [DeadLetter(queue, each.message.data, _reason(each.message)) for each in found[:limit]]

    def bus(self) -> Bus:
        if self._bus is None:
            self._bus = QueueBus(PubsubMailboxes(self._link, self._shelf.options.prefix))
        return self._bus

    def partner(self, backend: Backend) -> Settle | None:
        return None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._bus is not None:
            self._bus.close()
        self._keeper.close()
        self._link.close()


def _message(envelope: Envelope) -> Any:
    if envelope.delay > 0:
        return message(envelope.body, {DELAY: str(envelope.delay), LEVEL: str(envelope.priority)})
    return message(envelope.body)


def _age(data: Any) -> tuple[int, int, int]:
    number = int(data.message_id) if data.message_id.isdecimal() else 0
    return data.publish_time.seconds, data.publish_time.nanos, number


def _reason(data: Any) -> str:
    if REASON in data.attributes:
        return str(data.attributes[REASON])
    count = data.attributes.get("CloudPubSubDeadLetterSourceDeliveryCount")
    return f"delivered {count} times without an end" if count else ""


def _flag(address: Address, name: str, default: bool) -> bool:
    text = address.options.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigurationError(f"{name}={text!r} in {address} is neither true nor false")
    return text in ("true", "1", "yes")


def _options(address: Address) -> ShelfOptions:
    lease = address.number("lease", 0.0) if "lease" in address.options else None
    if lease is not None and lease <= 0:
        raise ConfigurationError(f"{address}: the lease must be above 0 seconds")
    retention = int(address.number("retention", 604_800))
    if not _RETENTION[0] <= retention <= _RETENTION[1]:
        raise ConfigurationError(f"{address}: retention is {_RETENTION[0]} to {_RETENTION[1]} seconds")
    return ShelfOptions(
        prefix=address.options.get("prefix", "qnb"),
        create=_flag(address, "create", True),
        lease=lease,
        ordering=_flag(address, "ordering", False),
        exactly_once=_flag(address, "exactly_once", False),
        retention=retention,
    )


def _features(features: Features, options: ShelfOptions, *, emulated: bool) -> Features:
    """As they are with these options. The emulator keeps nothing over a restart, but keeps the order."""
    ordering = "queue" if options.ordering or emulated else "none"
    limits = replace(features.limits, delay_seconds=float(options.retention), ordering=ordering)
    survives = Support.NONE if emulated else features.survives_restart
    return replace(features, limits=limits, survives_restart=survives)
