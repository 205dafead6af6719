"""Doorbells between the processes that share a file: a writer wakes who waits, and nobody polls.

A waiter binds a Unix datagram socket and hangs a record for each topic it waits for into a small mapped file beside
the sockets; while it waits, its records say so. After a commit the writer looks for such a record, crosses it out
and sends a datagram. The folder is private to the user. A bell may get lost (another user, another container, a
cleaned folder): every waiter therefore looks for itself a few times a second, which the caller sees to.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import math
import mmap
import os
import select
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from qnb.brokers.memory.bus import Gate

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

RECORD = (
    16  # 1 byte: waits now; 7: topic; 4: number of the socket; 4: spare. The first record holds how many there are.
)
RECORDS = 2048
LOOK_SECONDS = 0.25  # how long a lost bell may cost
_WAITING = b"\x01"


@lru_cache(1000)
def topic_of(kind: str, name: str) -> bytes:
    """The seven bytes that stand for a queue or a peer."""
    return hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=7).digest()


class Bell:
    """What one waiter listens to. Armed and waited for by one thread; woken from any, and from signal handlers."""

    def __init__(self, topics: Sequence[bytes]) -> None:
        self.topics = list(topics)
        self.rung = False
        self._gate = Gate()

    def arm(self) -> None:
        """From now on a ring is for this bell. Look for work once more after it, then wait."""
        self.rung = False

    def disarm(self) -> bool:
        """No ring is for this bell any more; whether one was since arm()."""
        return self.rung

    def wait(self, seconds: float) -> None:
        """Until a ring, a wake or the seconds are over."""
        self._gate.wait(seconds)

    def patience(self, looks: int) -> float:
        """How long to wait before the next look; `looks` were in vain so far. Without sockets that is polling."""
        return min(0.02 * 1.5 ** min(looks, 10), LOOK_SECONDS)

    def wake(self) -> None:
        """End the wait, or the next one."""
        self._gate.open()

    def close(self) -> None:
        """Take the bell down."""


class Bells:
    """The bells of one file as far as one process can ring them: those that hang in this process."""

    def __init__(self) -> None:
        self._own: list[Bell] = []

    def hang(self, topics: Sequence[bytes]) -> Bell:
        """A bell for whoever waits for these topics."""
        bell = Bell(topics)
        self._own.append(bell)
        return bell

    def ring(self, topic: bytes, count: int = 1) -> None:
        """Wake up to `count` of those who wait for the topic."""
        for bell in self._own:
            if topic in bell.topics:
                bell.rung = True
                bell.wake()

    def close(self) -> None:
        """Ring no more."""
        self._own.clear()


class SocketBell(Bell):
    """A bell that other processes can ring."""

    def __init__(self, bells: SocketBells, topics: Sequence[bytes]) -> None:
        self.topics = list(topics)
        self._bells = bells
        self._closed = False
        self._hang()

    def _hang(self) -> None:
        self.socket, self.number, self.places = self._bells.place(self.topics)
        tail = self.number.to_bytes(4, "little")
        self._records = [topic + tail for topic in self.topics]
        self.socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)

    def arm(self) -> None:
        board = self._bells.board
        for at, record in zip(self.places, self._records, strict=True):
            if board[at + 1 : at + 12] != record:
                self.socket.close()  # its file was cleaned away, and someone took the bell for dead
                self._hang()
                break
        for at in self.places:
            board[at] = 1

    def disarm(self) -> bool:
        board, rung = self._bells.board, False
        for at in self.places:
            rung = rung or not board[at]
            board[at] = 0
        return rung

    def wait(self, seconds: float) -> None:
        try:
            if self._poll.poll(math.ceil(max(seconds, 0.0) * 1000)):
                self.socket.recv(1)
        except OSError:  # closed meanwhile
            pass

    def patience(self, looks: int) -> float:
        return LOOK_SECONDS

    def wake(self) -> None:
        self._bells.send(self.number)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._bells.remove(self)


class SocketBells(Bells):
    """The bells of one file, for all processes of this user. Raises OSError where there can be none."""

    def __init__(self, path: str) -> None:
        if fcntl is None or not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"):
            raise OSError(errno.ENOTSUP, "no Unix sockets here")
        super().__init__()
        name = hashlib.blake2b(os.path.realpath(path).encode(), digest_size=6).hexdigest()
        self._folder = os.path.join(tempfile.gettempdir(), f"qnb-{os.getuid()}-{name}")
        self._mutex = threading.Lock()
        self._start = 0
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        try:
            self._file, self.board = self._open()
        except (OSError, ValueError) as error:
            self._sender.close()
            raise OSError(errno.EIO, str(error)) from error

    def _open(self) -> tuple[int, mmap.mmap]:
        """The board, in a folder that is this user's alone."""
        for _ in range(9):
            with suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            found = os.lstat(self._folder)
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
                raise OSError(errno.EPERM, f"{self._folder} is not this user's own")
            with suppress(FileNotFoundError):  # whoever was last here has just tidied up
                file = os.open(f"{self._folder}/board", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                break
        else:
            raise OSError(errno.EAGAIN, f"{self._folder} comes and goes")
        try:
            if os.fstat(file).st_size < RECORD * RECORDS:
                os.ftruncate(file, RECORD * RECORDS)
            return file, mmap.mmap(file, RECORD * RECORDS)
        except BaseException:
            os.close(file)
            raise

    def _renew(self) -> None:
        """Another board where the last to leave has removed this one; there was no bell of ours on it."""
        old = self._file
        self._file, self.board = self._open()
        os.close(old)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The only thread of the only process that changes who has which record."""
        with self._mutex:
            while True:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                if os.fstat(self._file).st_nlink:
                    break
                self._renew()
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _used(self) -> int:
        return int.from_bytes(self.board[:4], "little")

    def _number(self, at: int) -> int:
        return int.from_bytes(self.board[at + 8 : at + 12], "little")

    def hang(self, topics: Sequence[bytes]) -> Bell:
        try:
            return SocketBell(self, topics)
        except OSError:
            return super().hang(topics)

    def place(self, topics: Sequence[bytes]) -> tuple[socket.socket, int, list[int]]:
        """Records for the topics: the bound socket, its number, where the records are."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with self._alone():
            try:
                places = self._free_places(max(len(topics), 1))
                number = places[0] // RECORD
                with suppress(FileNotFoundError):
                    os.unlink(self._path(number))  # its record is free, so that it is nobody's
                listener.bind(self._path(number))
            except OSError:
                listener.close()
                raise
            for at, topic in zip(places, topics, strict=False):
                self.board[at : at + RECORD] = b"\0" + topic + number.to_bytes(4, "little") + b"\0\0\0\0"
        return listener, number, places[: len(topics)]

    def _free_places(self, wanted: int) -> list[int]:
        self._reap()
        used = self._used()
        empty = bytes(RECORD)
        places = [at for at in range(RECORD, RECORD * (used + 1), RECORD) if self.board[at : at + RECORD] == empty]
        while len(places) < wanted:
            used += 1
            if used >= RECORDS:
                raise OSError(errno.ENOSPC, "no record is free")
            places.append(used * RECORD)
        self.board[:4] = used.to_bytes(4, "little")
        return places[:wanted]

    def _reap(self) -> None:
        """Take down the bells of processes that died."""
        alive: dict[int, bool] = {}
        last = 0
        for at in range(RECORD, RECORD * (self._used() + 1), RECORD):
            if self.board[at : at + RECORD] == bytes(RECORD):
                continue
            number = self._number(at)
            if number not in alive:
                alive[number] = self._is_alive(number)
            if alive[number]:
                last = at // RECORD
            else:
                self.board[at : at + RECORD] = bytes(RECORD)
        self.board[:4] = last.to_bytes(4, "little")

    def _is_alive(self, number: int) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(self._path(number))  # asks without waking
            except (ConnectionRefusedError, FileNotFoundError):
                with suppress(FileNotFoundError):
                    os.unlink(self._path(number))
                return False
            except OSError:
                return True
        return True

    def send(self, number: int) -> bool:
        """One datagram; False when nobody has this socket any more."""
        try:
            self._sender.sendto(b"!", self._path(number))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its buffer is full of rings already, or the sender is closed
            pass
        return True

    def ring(self, topic: bytes, count: int = 1) -> None:
        if self._own:
            super().ring(topic)
        if os.fstat(self._file).st_nlink == 0:
            with self._alone():
                pass
        board, wanted = self.board, _WAITING + topic
        end = RECORD * (self._used() + 1)
        # A start that moves on spreads the work over those who wait.
        start = self._start = self._start + RECORD if self._start < end else RECORD
        for low, high in ((start, end), (RECORD, min(start + RECORD, end))):
            while count > 0 and (at := board.find(wanted, low, high)) >= 0:
                low = at + 1
                if at % RECORD:
                    continue
                board[at] = 0
                if self.send(self._number(at)):
                    count -= 1
                else:
                    with self._alone():
                        self._reap()

    def remove(self, bell: SocketBell) -> None:
        """Take one bell down."""
        with suppress(OSError), self._alone():
            for at in bell.places:
                if self._number(at) == bell.number:
                    self.board[at : at + RECORD] = bytes(RECORD)
            os.unlink(self._path(bell.number))
        bell.socket.close()

    def close(self) -> None:
        super().close()
        with suppress(OSError), self._alone():
            self._reap()
            if not self._used():  # the last to leave tidies up
                os.unlink(f"{self._folder}/board")
                os.rmdir(self._folder)
        with self._mutex, suppress(OSError):
            self._sender.close()
            os.close(self._file)
            self._file = -1  # the board stays mapped: a thread may be looking at its records


def bells_for(path: str) -> Bells:
    """Bells between processes where that can be, else those of this process."""
    try:
        return SocketBells(path)
    except OSError:
        return Bells()
