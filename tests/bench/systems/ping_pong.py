"""The floor: two processes pass a message to and fro on Redis streams, each through a bare socket and hiredis."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import hiredis

from tests.bench.systems.base import System

MESSAGE = b"x" * 200


class Link:
    """A connection without anything round it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = hiredis.Reader()
        self.ask(("SELECT", address.path.strip("/") or "0"))

    def ask(self, *commands: tuple[Any, ...]) -> Any:
        """Send commands in one go; the last one's reply."""
        self.socket.sendall(b"".join([hiredis.pack_command(command) for command in commands]))
        reply: Any = None
        for _ in commands:
            while (reply := self.reader.gets()) is False:
                self.reader.feed(self.socket.recv(65536))
        return reply

    def commands(self) -> int:
        """How many commands the server has carried out, without the calls of this function."""
        self.asked = getattr(self, "asked", -1) + 1
        lines = self.ask(("INFO", "stats")).decode().splitlines()
        total = next(int(line.partition(":")[2]) for line in lines if line.startswith("total_commands_processed:"))
        return total - self.asked


def pong(url: str) -> None:
    """The worker's half: XREADGROUP, then XADD of the answer, XACK and XDEL in one trip."""
    link = Link(url)
    while True:
        reply = link.ask(("XREADGROUP", "GROUP", "g", "w", "COUNT", 1, "BLOCK", 0, "STREAMS", "there", ">"))
        entry, fields = reply[0][1][0]
        link.ask(("XADD", "back", "*", "m", fields[1]), ("XACK", "there", "g", entry), ("XDEL", "there", entry))


class PingPong(System):
    """The client's half: XADD, XREAD."""

    label = "raw ping-pong, Redis streams"

    def command(self, processes: int) -> Sequence[str]:
        return [sys.executable, "-m", "tests.bench.systems.ping_pong", self.place.redis]

    def start(self, apart: bool = False) -> None:
        Link(self.place.redis).ask(("XGROUP", "CREATE", "there", "g", "0", "MKSTREAM"))
        self.start_one(1)

    def connect(self) -> None:
        self.link = Link(self.place.redis)
        self.last = b"0"

    def call(self, number: int) -> int:
        self.link.ask(("XADD", "there", "*", "m", MESSAGE))
        reply = self.link.ask(("XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "back", self.last))
        self.last = reply[0][1][0][0]
        return number


if __name__ == "__main__":
    pong(sys.argv[1])
