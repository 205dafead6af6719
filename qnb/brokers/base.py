"""The ports of a broker. Verbs are batches; the vocabulary is leases, because every broker has one under some name.

An adapter translates its client library's errors at its edge into those of qnb.errors, with the cause kept, and
reconnects by itself: after a lost connection the next call works again once the server is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qnb.features import Features
from qnb.message import Envelope, Note, Stored

if TYPE_CHECKING:
    from qnb.backends.base import Backend

DEFAULT_LEASE = 10.0
PRESENCE_SECONDS = 3.0
PROBE_PREFIX = "probe-"  # what queues are called that a probe makes


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue as it is declared. `lease` in seconds: how long a delivery may stay unsettled and unextended."""

    name: str
    lease: float = DEFAULT_LEASE


@dataclass(slots=True, eq=False)
class Delivery:
    """A message taken on a lease. `deliveries` counts this one too; `token` is the adapter's own."""

    queue: str
    body: bytes
    deliveries: int = 1
    token: Any = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected message as `Broker.dead_letters` gives it back."""

    queue: str
    body: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Presence:
    """A peer that is there. `info` is whatever it said of itself at its last beat."""

    peer: str
    info: bytes = b""


class Consumer(Protocol):
    """Receives from one thread, settles from another: the adapter makes that safe.

    Every delivery is on a lease. It may be given to someone else once its lease is over, not before. Settling a
    delivery whose lease is over does nothing and is no error; after close() all unsettled ones are released.
    """

    lease: float

    def receive_many(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """1 … limit deliveries as soon as there are any; none after `timeout` seconds. Never waits to fill up."""

    def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        """Done: never delivered again."""

    def release_many(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """Back to the queue for anyone, after `delay` seconds. Does not count as a delivery that failed."""

    def reject_many(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """To the dead letters, with the reason."""

    def extend_many(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """The leases now last `seconds` from now."""

    def take_from(self, queues: Sequence[str]) -> None:
        """Take from these queues from now on, instead of those before; from none at all, too.

        What was handed out is still settled here. A receive_many that waits goes on with the new queues.
        """

    def wake(self) -> None:
        """Make a receive_many that waits in another thread return at once."""

    def close(self) -> None:
        """Release what is unsettled and stop."""


class Inbox(Protocol):
    """The mailbox of one peer, read from one thread at a time. Notes come in the order in which they were posted."""

    peer: str

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        """Notes as soon as there are any; none after `timeout` seconds. 0 looks and does not wait."""

    def beat(self, info: bytes = b"") -> None:
        """Be present for the next PRESENCE_SECONDS. A peer that never beats gets notes, and is not among the peers."""

    def wake(self) -> None:
        """Make a receive_many that waits in another thread return at once."""

    def close(self) -> None:
        """Leave: no longer present; the mailbox and what is in it is removed."""


class Bus(Protocol):
    """Presence and mailboxes: enough for events, control and replies on any broker. Safe from any thread."""

    def join(self, peer: str) -> Inbox:
        """Open the mailbox of a peer. Notes posted to it from now on arrive, even before the first receive_many."""

    def post_many(self, notes: Sequence[Note]) -> None:
        """Put notes into mailboxes. A note to a peer that nobody joined as is dropped, or expires unread."""

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        """Who is present, by name; one whose beat is older than PRESENCE_SECONDS is not."""


@dataclass(slots=True)
class Turn:
    """What a worker settles at once, in this order: publish, store, post, ack."""

    publish: list[Envelope] = field(default_factory=list)
    store: list[Stored] = field(default_factory=list)
    post: list[Note] = field(default_factory=list)
    ack: list[Delivery] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.publish or self.store or self.post or self.ack)


# Settles a turn in one round trip and gives back the refused records (see Backend.store_many).
Settle = Callable[[Consumer, Turn], Sequence[Stored]]


class Broker(Protocol):
    """A server that keeps queues. Safe from any thread.

    The constructor takes the URL, connects, and raises within 5 seconds when that fails: BrokerUnavailable with
    host, port and what to check, or AccessDenied. Options in the URL's query are the adapter's; all take
    `lease` (seconds) and `prefix` (put before every name on the server).

    A broker may also have `stats() -> dict`: what it counts of its own work, such as the requests that a metered
    service is paid by. Workers tell it in their `stats`.
    """

    scheme: ClassVar[str]
    features: ClassVar[Features]
    url: str  # without password

    def __init__(self, url: str) -> None: ...

    def declare(self, spec: QueueSpec) -> None:
        """Make the queue if it is not there."""

    def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Returns when the server has confirmed all; PublishFailed.failed names the rest.

        Unsupported when an envelope asks for what the features do not have; PayloadTooLarge over the limit.
        """

    def publish_and_receive(
        self, envelopes: Sequence[Envelope], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        """publish_many, then one inbox.receive_many; in one round trip where the server can."""

    def consume(self, queues: Sequence[str], *, prefetch: int) -> Consumer:
        """Start to take deliveries from these queues, at most `prefetch` unsettled at a time."""

    def depth(self, queue: str) -> int | None:
        """Messages waiting (delayed ones too, leased ones not); None when the broker cannot tell."""

    def queues(self, prefix: str = "") -> Sequence[str]:
        """The queues that are there, by name."""

    def purge(self, queue: str) -> int:
        """Drop all waiting messages; how many."""

    def remove(self, queue: str) -> None:
        """Remove the queue and everything of it; its dead letters too."""

    def dead_letters(self, queue: str, limit: int = 100) -> Sequence[DeadLetter]:
        """The newest rejected messages of the queue; they stay where they are."""

    def bus(self) -> Bus: ...

    def partner(self, backend: Backend) -> Settle | None:
        """A one-round-trip settle when this backend lives on the same server; else None."""

    def close(self) -> None: ...
