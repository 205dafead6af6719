"""The bus inside one process: mailboxes and presence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.message import Note


class Gate:
    """A binary semaphore: opened from any thread or signal handler, it lets one waiter through."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let the next wait() through; opening it twice is opening it once."""
        with suppress(RuntimeError):
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Until it is open or the seconds are over; it is shut behind the waiter."""
        self._lock.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class Mailbox:
    """Notes of one joined peer."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.gate = Gate()
        self.present_until = 0.0
        self.info = b""


class Mailboxes:
    """The mailboxes that the brokers of one name share, by peer."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.by_peer: dict[str, Mailbox] = {}

    def post(self, notes: Iterable[Note]) -> None:
        """Put notes where they belong; those to nobody are dropped."""
        with self.lock:
            for note in notes:
                mailbox = self.by_peer.get(note.to)
                if mailbox is not None:
                    mailbox.notes.append(note)
                    mailbox.gate.open()


class MemoryInbox:
    """The mailbox of one peer."""

    def __init__(self, mailboxes: Mailboxes, peer: str) -> None:
        self.peer = peer
        self._mailboxes = mailboxes
        self._woken = False
        self._closed = False
        self._mailbox = Mailbox()
        with mailboxes.lock:
            mailboxes.by_peer[peer] = self._mailbox

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        end = time.monotonic() + timeout
        mailbox = self._mailbox
        while True:
            now = time.monotonic()
            if mailbox.notes or self._woken or self._closed or now >= end:
                self._woken = False
                count = min(limit, len(mailbox.notes))
                # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
                # What is posted meanwhile is put behind those that are taken.
                notes = mailbox.notes[:count]
                del mailbox.notes[:count]
                return notes
            mailbox.gate.wait(end - now)

    def beat(self, info: bytes = b"") -> None:
        with self._mailboxes.lock:
            self._mailbox.present_until = time.monotonic() + PRESENCE_SECONDS
            self._mailbox.info = info

    def wake(self) -> None:
        self._woken = True
        self._mailbox.gate.open()

    def close(self) -> None:
        with self._mailboxes.lock:
            self._closed = True
            if self._mailboxes.by_peer.get(self.peer) is self._mailbox:  # else someone else joined under this name
                del self._mailboxes.by_peer[self.peer]
        self._mailbox.gate.open()


class MemoryBus:
    """Presence and mailboxes among the brokers of one name."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes

    def join(self, peer: str) -> MemoryInbox:
        return MemoryInbox(self._mailboxes, peer)

    def post_many(self, notes: Sequence[Note]) -> None:
        self._mailboxes.post(notes)

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        now = time.monotonic()
        with self._mailboxes.lock:
            there = [(peer, box.info) for peer, box in self._mailboxes.by_peer.items() if box.present_until > now]
        return [Presence(peer, info) for peer, info in sorted(there) if peer.startswith(prefix)]
