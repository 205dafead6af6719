"""What a server can carry when next to nothing is done with it: the field's own client in two loops.

One process publishes tasks and collects outcomes, another takes tasks, sends an outcome for each and acknowledges. Each
task is a message of its own, and so is each outcome; all else is done in the best batches that the client has. There is
no user code, no process for it to die in, no signature, no lease kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.systems.base import Place, System

FILLING = b"x" * 92


def message(number: int) -> bytes:
    """A task or an outcome: 100 bytes."""
    return number.to_bytes(8, "big") + FILLING


def number_of(data: bytes) -> int:
    """Which one it is."""
    return int.from_bytes(data[:8], "big")


def place_of(url: str) -> Place:
    """The place as a worker's half knows it."""
    return Place("", Path(), url)


class RawLoop(System):
    """The client's half. A subclass has `connect`, `publish` and `collect`; its module serves when it is run."""

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", type(self).__module__, self.place.broker]

    def start(self, apart: bool = False) -> None:
        self.prepare()
        self.start_one(1)

    def prepare(self) -> None:
        """Make what both halves use."""

    def publish(self, numbers: Sequence[int]) -> None:
        """Send a task for each; returns when they are confirmed, or are sure to be while others are collected."""
        raise NotImplementedError

    def collect(self, count: int) -> list[int]:
        """So many outcomes, in any order."""
        raise NotImplementedError

    def submit_many(self, count: int) -> list[Any]:
        self.publish(range(count))
        return list(range(count))

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return sorted(self.collect(len(handles)))

    def map(self, count: int) -> list[Any]:
        return self.gather(self.submit_many(count))

    def call(self, number: int) -> int:
        self.publish([number])
        return self.collect(1)[0]
