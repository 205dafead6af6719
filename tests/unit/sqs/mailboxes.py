"""Mailboxes in memory that behave as badly as a server of queues may: late lists, doubles, no order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Mapping, Sequence

from qnb.brokers.bus import MailboxGone


class Box:
    def __init__(self, name: str) -> None:
        self.name = name
        self.made = time.monotonic()
        self.messages: list[bytes] = []


class FakeMailboxes:
    """See Mailboxes. `shuffle`: messages come in any order, and some twice."""

    message_bytes = 1000

    def __init__(self, *, shuffle: bool = False) -> None:
        self.ordered = not shuffle
        self.changed = threading.Condition()
        self.boxes: dict[str, Box] = {}
        self.requests = 0
        self.aged = 0.0
        self.stopped: set[str] = set()  # peers whose process stands still
        self._shuffle = shuffle
        self._random = random.Random(7)

    def make(self, name: str) -> str:
        with self.changed:
            self.requests += 1
            for address in [address for address, box in self.boxes.items() if box.name == name]:
                del self.boxes[address]
            box = Box(name)
            self.boxes[str(id(box))] = box
            self.changed.notify_all()
            return str(id(box))

    def find(self, prefix: str = "") -> Mapping[str, str]:
        with self.changed:
            self.requests += 1
            return {box.name: address for address, box in self.boxes.items() if box.name.startswith(prefix)}

    def age(self, address: str) -> float | None:
        with self.changed:
            box = self.boxes.get(address)
            return None if box is None else time.monotonic() - box.made + self.aged

    def send_many(self, messages: Sequence[tuple[str, bytes]]) -> Collection[str]:
        gone = set()
        with self.changed:
            by_name = {box.name: box for box in self.boxes.values()}
            for name, data in messages:
                self.requests += 1
                assert len(data) <= self.message_bytes
                if name in by_name:
                    by_name[name].messages += [data] * (2 if self._shuffle and self._random.random() < 0.2 else 1)
                else:
                    gone.add(name)
            self.changed.notify_all()
        return gone

    def receive(self, address: str, timeout: float) -> Sequence[bytes]:
        end = time.monotonic() + timeout
        with self.changed:
            self.requests += 1
            while True:
                box = self.boxes.get(address)
                if box is None:
                    raise MailboxGone(address)
                if (box.messages and box.name not in self.stopped) or time.monotonic() >= end:
                    break
                self.changed.wait(end - time.monotonic())
            if box.name in self.stopped:
                return []
            if self._shuffle:
                self._random.shuffle(box.messages)
            taken, box.messages = box.messages[:3], box.messages[3:]
            return taken

    def remove(self, address: str) -> None:
        with self.changed:
            self.boxes.pop(address, None)
            self.changed.notify_all()
