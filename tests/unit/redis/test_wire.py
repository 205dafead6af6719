"""What a link writes and reads, whatever the size, and however little the kernel takes at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import hiredis
import pytest

from qnb.brokers.redis import link as redis_link
from qnb.brokers.redis.link import Command, Link

LARGE = 70_000
SMALL: Command = ("XADD", "k", "*", "b", b"x" * 10, 7)
HUGE: Command = ("SET", b"k", b"y" * 3_000_000)
BOTH: Command = ("EVALSHA", b"a" * LARGE, 1, b"", b"b" * LARGE, "ü", b"c" * (LARGE + 1))


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and a peer that takes little at a time."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    link = Link(near)
    yield link, far
    link.close()
    far.close()


@pytest.mark.parametrize(
    "commands",
    [[SMALL], [SMALL] * 3, [SMALL] * 5_000, [HUGE], [BOTH], [SMALL, BOTH, HUGE, SMALL, SMALL], [BOTH] * 600],
    ids=["one", "few", "many", "huge", "several large arguments", "mixed", "more parts than one call takes"],
)
@pytest.mark.parametrize("polled", [True, False])
def test_all_of_it_goes_out_in_order(ends: tuple[Link, socket.socket], commands: list[Command], polled: bool) -> None:
    link, far = ends
    link._polled = polled  # as with TLS
    wanted = b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]
    got = bytearray()

    def read() -> None:
        while len(got) < len(wanted):
            got.extend(far.recv(1 << 20))

    reader = threading.Thread(target=read)
    reader.start()
    link.send(commands)
    reader.join(30)
    assert bytes(got) == wanted


@pytest.mark.parametrize("commands", [[HUGE], [SMALL] * 16, [SMALL] * 5_000], ids=["huge", "few", "many"])
def test_a_peer_that_takes_nothing(
    ends: tuple[Link, socket.socket], commands: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "REPLY_SECONDS", 0.1)

    def fill() -> None:
        for _ in range(5_000):
            ends[0].send(commands)

    with pytest.raises(TimeoutError):
        fill()


def test_replies(ends: tuple[Link, socket.socket]) -> None:
    link, far = ends
    replies: list[object] = []
    far.sendall(b"+OK\r\n:1\r\n$2\r\nhe")
    with pytest.raises(TimeoutError):
        link.read_into(replies, 3, 0.05)
    far.sendall(b"\r\n")
    link.read_into(replies, 1, 5.0)
    assert replies == [b"OK", 1, b"he"]
    far.close()
    with pytest.raises(ConnectionError, match="closed"):
        link.read_into(replies, 1, 5.0)


INTERRUPTED = """
import signal, sys, time
from qnb.brokers.redis.link import _pack

def interrupt(*_):
    raise KeyboardInterrupt

command = ("XREADGROUP", *range(400))
signal.signal(signal.SIGALRM, interrupt)
happened, end = 0, time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while True:
            _pack(command)
    except KeyboardInterrupt:
        happened += 1
print(happened)
"""


def test_ctrl_c_while_numbers_are_packed() -> None:
    """hiredis takes the repr of a number, in which an interrupt may come, and uses what is then no text."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
