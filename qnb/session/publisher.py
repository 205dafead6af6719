"""Frames → sealed envelopes → the broker. What cannot go out yet is kept and tried again."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from qnb.backends.base import Backend
from qnb.brokers.base import Broker, Inbox, QueueSpec
from qnb.codec.claims import fits_alone, halves, lighten
from qnb.codec.parts import put_sealed
from qnb.codec.signing import CODE, FRAME, Signer
from qnb.errors import BrokerError, BrokerUnavailable, PayloadTooLarge, PublishFailed, StorageFull, Unsupported
from qnb.message import Envelope, Frame, Note
from qnb.session.stored import StoredBlobs

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Publisher:
    """Sends frames; tells the sink which were sent and which can never be."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        signer: Signer,
        stored: StoredBlobs,
        failed: Callable[[Frame, BaseException], None],
    ) -> None:
        self.broker = broker
        self.backend = backend
        self.signer = signer
        self._failed = failed
        self._queues: set[str] = set()
        self._stored = stored
        self._unsent: list[tuple[Envelope, Frame]] = []
        self._lock = threading.Lock()

    def publish(self, frames: Sequence[Frame], queue: str, delay: float = 0.0) -> None:
        """Returns when the broker has confirmed what it took; a broker that is away gets it later."""
        pairs = self._seal(frames, queue, delay)
        if pairs:
            with self._kept(pairs):
                self.broker.publish_many([envelope for envelope, _ in pairs])

    def publish_and_receive(
        self, frames: Sequence[Frame], where: tuple[str, float], inbox: Inbox, limit: int, timeout: float
    ) -> Sequence[Note]:
        """The same to queue and delay `where`, then one inbox.receive_many; one round trip where the broker can."""
        pairs = self._seal(frames, *where)
        notes: Sequence[Note] = ()
        if pairs:
            with self._kept(pairs):
                notes = self.broker.publish_and_receive([envelope for envelope, _ in pairs], inbox, limit, timeout)
        return notes

    def _seal(self, frames: Sequence[Frame], queue: str, delay: float) -> list[tuple[Envelope, Frame]]:
        if queue not in self._queues:
            self.broker.declare(QueueSpec(queue))
            self._queues.add(queue)
        pairs = []
        left = list(reversed(frames))
        while left:
            frame = left.pop()
            try:
                pairs.append((self._envelope(frame, queue, delay), frame))
            except PayloadTooLarge as error:  # with no blob store to put it into: smaller messages may do
                if frame.count > 1 and fits_alone(frame, self.broker.features.limits.message_bytes):
                    left += reversed(halves(frame))
                else:
                    self._failed(frame, error)
            except (BrokerError, StorageFull, Unsupported, TypeError, ValueError, OverflowError) as error:
                self._failed(frame, error)
        return pairs

    def retry(self) -> None:
        """Try again what could not go out."""
        with self._lock:
            pairs, self._unsent = self._unsent, []
        if pairs:
            with self._kept(pairs):
                self.broker.publish_many([envelope for envelope, _ in pairs])

    @property
    def unsent(self) -> int:
        """Messages that wait for the broker to come back."""
        return len(self._unsent)

    def give_up(self, error: BaseException) -> None:
        """Fail what could not go out."""
        with self._lock:
            pairs, self._unsent = self._unsent, []
        for _, frame in pairs:
            self._failed(frame, error)

    @contextlib.contextmanager
    def _kept(self, pairs: list[tuple[Envelope, Frame]]) -> Iterator[None]:
        """Whatever goes wrong inside, these are sent, kept to be sent again, or failed. Ctrl-C is the caller's."""
        try:
            yield
        except PublishFailed as error:
            failed = {id(envelope) for envelope in error.failed}
            left = [pair for pair in pairs if id(pair[0]) in failed]
            if isinstance(error.__cause__, (PayloadTooLarge, Unsupported, StorageFull)):
                for _, frame in left:
                    self._failed(frame, error.__cause__)
            else:
                self._keep(left, error)
        except BrokerUnavailable as error:
            self._keep(pairs, error)
        except (BrokerError, StorageFull, Unsupported) as error:
            for _, frame in pairs:
                self._failed(frame, error)

    def _keep(self, pairs: list[tuple[Envelope, Frame]], error: BaseException) -> None:
        log.warning("%d messages wait for the broker: %s", len(pairs), error)
        with self._lock:
            self._unsent += pairs

    def _envelope(self, frame: Frame, queue: str, delay: float) -> Envelope:
        put = self._put if self.backend.blobs else None
        frame = lighten(frame, self.broker.features.limits.message_bytes, put)
        body = self.signer.pack(FRAME, frame)
        return Envelope(queue, body, f"{frame.run}:{frame.first}", frame.options.priority, delay)

    def _put(self, key: str, purpose: bytes, body: bytes) -> None:
        if key in self._stored:
            return
        put_sealed(self.backend, self.signer, key, purpose, body)
        if purpose == CODE:  # the same with every frame; arguments come once
            self._stored.add(key)
