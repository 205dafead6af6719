"""Which queues a worker takes from: changed under way by remote control."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from qnb.brokers.base import Broker, Consumer, QueueSpec


class Intake:
    """The queues that are served, and those of them that are paused. Safe from any thread."""

    def __init__(self, broker: Broker, consumer: Consumer, queues: Sequence[str]) -> None:
        self._broker = broker
        self._consumer = consumer
        self._lock = threading.Lock()
        self._queues = list(dict.fromkeys(queues))
        self._paused: set[str] = set()

    @property
    def serving(self) -> list[str]:
        """All queues of this worker, in their order; paused ones too."""
        return list(self._queues)

    @property
    def paused(self) -> list[str]:
        """Those from which nothing is taken now."""
        return sorted(self._paused)

    def pause(self, queue: str) -> dict[str, list[str]]:
        """Take nothing more from a queue until it is resumed; ValueError when it is not served here."""
        return self._change(queue, lambda: self._paused.add(queue))

    def resume(self, queue: str) -> dict[str, list[str]]:
        """Take from it again."""
        return self._change(queue, lambda: self._paused.discard(queue))

    def add(self, queue: str) -> dict[str, list[str]]:
        """Serve another queue too; one that is not there is made."""
        if not queue:
            raise ValueError("a queue needs a name")
        self._broker.declare(QueueSpec(queue))
        with self._lock:
            if queue not in self._queues:
                self._queues.append(queue)
        return self.resume(queue)

    def cancel(self, queue: str) -> dict[str, list[str]]:
        """Serve it no more. What was taken from it is finished."""

        def remove() -> None:
            self._queues.remove(queue)
            self._paused.discard(queue)

        return self._change(queue, remove)

    def _change(self, queue: str, change: Callable[[], object]) -> dict[str, list[str]]:
        with self._lock:
            if queue not in self._queues:
                raise ValueError(f"this worker does not serve queue {queue!r}, but {', '.join(self._queues)}")
            change()
            self._consumer.take_from([name for name in self._queues if name not in self._paused])
        return {"queues": self.serving, "paused": self.paused}
