"""A peer without a session: enough to ask workers and to hear them."""

from __future__ import annotations

import argparse
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from qnb import registry, settings
from qnb.cli import read_key
from qnb.codec.signing import NOTE, Signer, decode
from qnb.errors import MessageError
from qnb.message import Event, Reply
from qnb.monitor.control import Control


class Client:
    """Asks workers over the Bus. A context manager."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.signer = Signer(read_key(options))
        self.broker = registry.open_broker(settings.absolute_url(settings.broker_url(options.broker)))
        self.bus = self.broker.bus()
        self.peer = f"c.{os.getpid()}-{secrets.token_hex(3)}"
        self.inbox = self.bus.join(self.peer)
        self.replies: dict[str, list[Reply]] = {}
        self.listening = 0
        self.control = Control(self.bus, self.signer, self.peer, self)
        self._events: list[Event] = []

    def wait(self, done: Callable[[], bool], condition: threading.Condition, timeout: float | None) -> bool:
        """Read replies until `done()`; False when it is not after `timeout` seconds."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._read(min(left, 0.25))
        return True

    def _read(self, timeout: float) -> None:
        for note in self.inbox.receive_many(1000, timeout):
            try:
                body = self.signer.unseal(NOTE, note.body)
                if note.kind == "reply":
                    reply = decode(body, Reply)
                    self.replies.get(reply.id, []).append(reply)
                elif note.kind == "event":
                    self._events.append(decode(body, Event))
            except MessageError:
                continue  # signed with another key: not for us

    def events(self, seconds: float) -> Iterator[Event]:
        """What workers tell; the watch is renewed while this is read."""
        end, renewed = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if time.monotonic() - renewed > 3.0:
                renewed = time.monotonic()
                self.control.ask("watch", {"peer": self.peer}, timeout=0.5)
            self._read(min(0.25, max(0.0, end - time.monotonic())))
            events, self._events = self._events, []
            yield from events

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: Any) -> None:
        self.inbox.close()
        self.broker.close()
