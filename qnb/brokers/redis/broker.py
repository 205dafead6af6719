"""Redis as a broker: streams with one consumer group, a stream for each priority level in use.

URLs: redis://user:password@host:port/db, rediss:// (redis-py's ssl_… options), redis+socket:///path.sock?db=0,
redis+sentinel://h1:26379,h2:26379/db?master=mymaster (sentinel_user, sentinel_password; ssl_… for TLS to the servers,
sentinel_ssl=yes with the same to the sentinels), redis+cluster://h1:7000,h2:7000 and rediss+cluster: (some of the
nodes; the others are found). All keys of a place have one hash tag, its prefix: a place lives on one master of a
cluster, in one slot, so that turns are settled in one step. Places with other prefixes use the other masters.
Options: prefix (default qnb), lease (seconds), max_message (bytes), dead_letters (how many are kept, 10000),
replicas (how many have to take a message before it counts as published, 0: a failover of Sentinel or Cluster may lose
what the master alone has), patience (seconds to ride out an absence of the server, 30), health_check (seconds after
which an idle connection is tried before use, 15), credentials (module:function that returns a password, or user and
password, at each login).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from msgspec import structs

from qnb.brokers.base import DEFAULT_LEASE, Bus, Consumer, DeadLetter, Inbox, QueueSpec, Settle
from qnb.brokers.redis.bus import RedisBus, RedisInbox
from qnb.brokers.redis.client import BROKER, HEALTH_CHECK, PATIENCE, Client
from qnb.brokers.redis.consumer import ConsumerOptions, RedisConsumer
from qnb.brokers.redis.link import Command, Reply, ServerError, target_of
from qnb.brokers.redis.scripts import DEPTH, PUBLISH, PURGE, REMOVE, script
from qnb.brokers.redis.server import check_server
from qnb.brokers.redis.settle import LARGEST_VALUE, Home, RedisSettle
from qnb.errors import AccessDenied, ConfigurationError, PayloadTooLarge, PublishFailed, StorageFull, Unsupported
from qnb.features import Features, Limits, Support
from qnb.message import Envelope, Note
from qnb.settings import Address, parse_url

if TYPE_CHECKING:
    from qnb.backends.base import Backend

_BATCH_COMMANDS = 5_000
_BATCH_BYTES = 8 * 1024 * 1024
_PURGE_STEP = 2_000
_WAIT_SECONDS = 2


def base_of(address: Address) -> str:
    """What every key starts with; the braces make it one slot of a cluster."""
    prefix = address.options.get("prefix", "qnb")
    if not prefix or "{" in prefix or "}" in prefix:
        raise ConfigurationError(f"{address}: the prefix must not be empty and have no braces")
    return f"{{{prefix}}}:"


def client_options(address: Address) -> tuple[float, float]:
    """Patience and health_check."""
    return address.number("patience", PATIENCE), address.number("health_check", HEALTH_CHECK)


class RedisBroker:
    """See Broker of the ports."""

    scheme: ClassVar[str] = "redis"
    features: Features = Features(
        confirmed_publish=Support.NATIVE,
        lease_extension=Support.NATIVE,
        redelivery=Support.NATIVE,
        delay=Support.BUILT,
        priority=Support.BUILT,
        dead_letter=Support.BUILT,
        monitoring=Support.BUILT,
        remote_control=Support.BUILT,
        purge=Support.NATIVE,
        queue_depth=Support.NATIVE,
        survives_restart=Support.NATIVE,
        limits=Limits(message_bytes=LARGEST_VALUE, priority_levels=10),
    )

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self._base = base_of(address)
        largest = min(LARGEST_VALUE, int(address.number("max_message", LARGEST_VALUE)))
        self.features = replace(self.features, limits=replace(self.features.limits, message_bytes=largest))
        self._largest = largest
        self._options = ConsumerOptions(
            base=self._base,
            lease=address.number("lease", DEFAULT_LEASE),
            force="lease" in address.options,
            dead_letters=int(address.number("dead_letters", 10_000)),
        )
        if self._options.lease <= 0:
            raise ConfigurationError(f"{address}: the lease must be above 0 seconds")
        self._client = Client(target_of(address), BROKER, *client_options(address))
        self._replicas = int(address.number("replicas", 0))
        self._client.connect()
        try:
            self._server = check_server(self._client)
            if self._replicas:  # so that no script is missing later, for then a batch is sent as a whole again
                self._client.load_scripts()
        except BaseException:
            self._client.close()
            raise

    def declare(self, spec: QueueSpec) -> None:
        forced = self._options.force or spec.lease != DEFAULT_LEASE
        lease = self._options.lease if self._options.force else spec.lease
        self._client.one("HSET" if forced else "HSETNX", f"{self._base}queues", spec.name, max(1, round(lease * 1000)))

    def _lease(self, queue: str) -> float:
        """The lease in force: the URL's, else what the queue was declared with."""
        with suppress(StorageFull):  # a server out of memory is to be drained
            self.declare(QueueSpec(queue))
        found = self._client.one("HGET", f"{self._base}queues", queue)
        return self._options.lease if found is None else int(found) / 1000

    # ------------------------------------------------------------ publishing

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Nothing is sent when one of them is refused beforehand (Unsupported, PayloadTooLarge)."""
        for envelope in envelopes:
            self._check(envelope)
        replies: list[Reply] = []
        for batch in self._batches(envelopes):
            got = self._publish(batch)
            if got is None:
                raise PublishFailed(
                    f"fewer than {self._replicas} replicas of {self.url} took the messages within {_WAIT_SECONDS} s; "
                    "see INFO replication, or ask for fewer with replicas=",
                    list(envelopes[len(replies) :]),
                )
            replies += got
        self._confirm(envelopes, replies)

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        """In one round trip, to queues that have been declared."""
        if not isinstance(inbox, RedisInbox):
            raise TypeError("this reads an inbox of a Redis bus only")
        for envelope in envelopes:
            self._check(envelope)
        # Neither a script, which may have to be loaded first, nor replicas are waited for inside of a read.
        if self._replicas or any(not _plain(envelope) for envelope in envelopes):
            self.publish_many(envelopes)
            return inbox.receive_many(limit, timeout)
        replies, notes = inbox.receive_after([self._command(envelope) for envelope in envelopes], limit, timeout)
        if replies is None:  # the link broke: whether they were taken is not known
            self.publish_many(envelopes)
        else:
            self._confirm(envelopes, replies)
        return notes

    def _confirm(self, envelopes: Sequence[Envelope], replies: Sequence[Reply]) -> None:
        """PublishFailed with those that the server refused, for the reason of the last."""
        refused = [(e, r) for e, r in zip(envelopes, replies, strict=True) if isinstance(r, ServerError)]
        if not refused:
            return
        failed, refusal = [envelope for envelope, _ in refused], refused[-1][1]
        error = self._client.translate(refusal)
        if len(failed) == len(envelopes) and isinstance(error, StorageFull | AccessDenied):
            raise error from refusal
        raise PublishFailed(f"{len(failed)} of {len(envelopes)} messages not taken: {error}", failed) from error

    def _check(self, envelope: Envelope) -> None:
        if len(envelope.body) > self._largest:
            raise PayloadTooLarge(
                f"message {envelope.id or '?'} for {envelope.queue!r} has {len(envelope.body):,} bytes, "
                f"{self.url} takes {self._largest:,}"
            )
        if not 0 <= envelope.priority <= 9:
            raise Unsupported(f"priority {envelope.priority}: there are 0 to 9, and 9 comes first")

    @staticmethod
    def _batches(envelopes: Sequence[Envelope]) -> Sequence[Sequence[Envelope]]:
        """Pieces that do not fill this process's memory a second time."""
        if len(envelopes) == 1:
            return (envelopes,)
        batches: list[list[Envelope]] = []
        batch: list[Envelope] = []
        size = 0
        for envelope in envelopes:
            if batch and (len(batch) >= _BATCH_COMMANDS or size + len(envelope.body) > _BATCH_BYTES):
                batches.append(batch)
                batch, size = [], 0
            batch.append(envelope)
            size += len(envelope.body)
        return [*batches, batch] if batch else batches

    def _publish(self, batch: Sequence[Envelope]) -> list[Reply] | None:
        """None when too few replicas took it."""
        queues = dict.fromkeys(envelope.queue for envelope in batch)
        lease = round(self._options.lease * 1000)
        # Every time: it costs next to nothing, and holds after a server came back without its data.
        known: list[Command] = [("HSETNX", f"{self._base}queues", queue, lease) for queue in queues]
        commands = [*known, *(self._command(envelope) for envelope in batch)]
        if not self._replicas:
            return self._client.run(commands)[len(known) :]
        # WAIT is for what its own link has written, so after a broken one all of it is sent again.
        *replies, reached = self._client.run(
            [*commands, ("WAIT", self._replicas, round(_WAIT_SECONDS * 1000))], whole=True
        )
        if isinstance(reached, ServerError):
            raise self._client.translate(reached) from reached
        return replies[len(known) :] if reached >= self._replicas else None

    def _command(self, envelope: Envelope) -> Command:
        if _plain(envelope):
            return ("XADD", f"{self._base}q0:{envelope.queue}", "*", "b", envelope.body)
        delay = max(0, round(envelope.delay * 1000))
        arguments = {"queue": envelope.queue, "level": envelope.priority, "delay": delay}
        return script(PUBLISH, self._base, arguments, envelope.body)

    # ------------------------------------------------------------ the rest

    def consume(self, queues: Sequence[str], *, prefetch: int) -> Consumer:
        leases = [self._lease(queue) for queue in queues]
        options = structs.replace(self._options, lease=min(leases, default=self._options.lease))
        return RedisConsumer(self._client, queues, prefetch, options)

    def depth(self, queue: str) -> int | None:
        return int(self._client.one(*script(DEPTH, self._base, {"queue": queue})))

    def queues(self, prefix: str = "") -> Sequence[str]:
        names = [name.decode() for name in self._client.one("HKEYS", f"{self._base}queues")]
        return sorted(name for name in names if name.startswith(prefix))

    def purge(self, queue: str) -> int:
        total = 0
        while dropped := self._client.one(*script(PURGE, self._base, {"queue": queue, "limit": _PURGE_STEP})):
            total += dropped
        return total

    def remove(self, queue: str) -> None:
        self._client.one(*script(REMOVE, self._base, {"queue": queue}))

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        """Newest first."""
        entries = self._client.one("XREVRANGE", f"{self._base}dead:{queue}", "+", "-", "COUNT", limit)
        return [DeadLetter(queue, fields[1], fields[3].decode()) for _, fields in entries]

    def bus(self) -> Bus:
        return RedisBus(self._client, self._base)

    def partner(self, backend: Backend) -> Settle | None:
        home = getattr(backend, "home", None)
        if not isinstance(home, Home) or not home.shared_by(self._client.target, self._server):
            return None
        return RedisSettle(self._client, self._base, home, self.publish_many)

    def close(self) -> None:
        self._client.close()


def _plain(envelope: Envelope) -> bool:
    """Whether one XADD does it."""
    return envelope.delay <= 0 and envelope.priority == 0
