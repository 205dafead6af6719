"""Lanes: the processes or threads in which calls run, as the worker sees them."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Protocol

from qnb.codec.signing import decode
from qnb.settings import lane_environment
from qnb.worker.bars import watch_imports
from qnb.worker.lane import MARK_BYTES, Page
from qnb.worker.protocol import Report, Unpacker, Welcome, Work, pack
from qnb.worker.runner import Place, Runner
from qnb.worker.shows import share_displays
from qnb.worker.tape import VOICE, Tape, Voice, last_of_spill, share_console, spill_file
from qnb.worker.teller import Teller

log = logging.getLogger(__name__)

_SOCKET_BYTES = 1 << 20
_NO_MARK = (0, 0, 0.0)


class LaneDied(Exception):
    """The lane's process has ended; str() says how."""


class _LeftToItself(BaseException):
    """Ends the thread of a lane that nobody listens to any more."""


class Lane(Protocol):
    """Where calls run, one after the other. `receive` and `flush` are called by the settle thread alone."""

    number: int
    is_async: bool
    pid: int

    @property
    def unsent(self) -> bool:
        """Whether flush() has work to do."""

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, within so long."""

    def fileno(self) -> int:
        """Readable when there is something to receive."""

    def send(self, work: Work) -> None:
        """Hand over a work; never blocks."""

    def flush(self) -> bool:
        """Write what did not fit; True when all is written."""

    def receive(self) -> list[Report]:
        """What has been reported; LaneDied when it has ended."""

    def mark(self) -> tuple[int, int, float]:
        """What it is running: serial, index, Unix time of the start."""

    def kill(self) -> None:
        """End it at once; receive() then raises LaneDied."""

    def ended(self) -> bool:
        """Whether its process has ended, even if a child of it keeps the channel open."""

    def bury(self) -> str:
        """Free what is left of one that has ended; says how it ended."""

    def close(self) -> None:
        """It is idle: let it go."""


class ProcessLane:
    """A lane in a process of its own, started fresh (never forked from a process with threads)."""

    def __init__(self, number: int, welcome: Welcome, *, is_async: bool = False) -> None:
        self.number = number
        self.is_async = is_async
        self._sock, theirs = socket.socketpair()
        for end in (self._sock, theirs):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        life, self._life = os.pipe()
        # What C code and children print. The calls of an async lane run at once, and it could be anyone's.
        self._spill = None if is_async else spill_file()
        with tempfile.TemporaryFile() as file:
            file.truncate(MARK_BYTES)
            fds = (theirs.fileno(), file.fileno(), life)
            module = "qnb.worker.async_lane" if is_async else "qnb.worker.lane"
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import main; main{fds}"],
                stdin=subprocess.DEVNULL,
                stdout=self._spill,
                stderr=self._spill,
                pass_fds=fds,
                env=lane_environment(),
                start_new_session=True,  # so that kill() reaches what its calls have started, too
            )
            self._page = Page(file.fileno())
        self.pid = self._process.pid
        self._ooms = _oom_kills()
        theirs.close()
        os.close(life)
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._unpacker = Unpacker()
        self._left = bytearray()
        self._lock = threading.Lock()
        self._buffer = bytearray(_SOCKET_BYTES)
        self._write(pack(welcome))

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, work: Work) -> None:
        self._write(pack(work))

    def _write(self, data: bytes) -> None:
        with self._lock:
            if not self._left:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sent = self._sock.send(data)
                    if sent == len(data):
                        return
                    data = data[sent:]
            self._left += data

    def flush(self) -> bool:
        with self._lock:
            if self._left:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    del self._left[: self._sock.send(self._left)]
            return not self._left

    @property
    def unsent(self) -> bool:
        return bool(self._left)

    def wait(self, seconds: float) -> bool:
        return bool(self._poll.poll(seconds * 1000))

    def receive(self) -> list[Report]:
        reports: list[Report] = []
        try:
            while length := self._sock.recv_into(self._buffer):
                bodies = self._unpacker.feed(memoryview(self._buffer)[:length])
                reports += [decode(body, Report) for body in bodies]
                if length < _SOCKET_BYTES // 4:
                    return reports
        except BlockingIOError:
            return reports
        except ConnectionError:
            pass  # the same as an end of file: it is gone
        if reports:
            return reports
        raise LaneDied(self._reason())

    def bury(self) -> str:
        return self._reason()

    def mark(self) -> tuple[int, int, float]:
        return self._page.read()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._sock.close()
        os.close(self._life)
        self._close_spill()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _reason(self) -> str:
        if self._process.poll() is None:
            self.kill()  # it closed its end and goes on: nobody could hear of it any more
        code = self._process.wait()
        self._sock.close()
        os.close(self._life)
        if self._spill is not None and code not in (0, -signal.SIGKILL) and (last := last_of_spill(self._spill)):
            log.warning("lane %d (pid %d) wrote last:\n%s", self.number, self.pid, last)
        self._close_spill()
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL and _oom_kills() > self._ooms:
            return "out of memory: its process was killed by the kernel (SIGKILL)"
        return f"its process was killed by signal {-code} ({name})"

    def _close_spill(self) -> None:
        if self._spill is not None:
            os.close(self._spill)
            self._spill = None


class ThreadLane:
    """A lane in a thread. It cannot be killed: a call over its timeout is left to itself and no longer listened to."""

    def __init__(self, number: int, welcome: Welcome) -> None:
        self.number = number
        self.is_async = False
        self.pid = os.getpid()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._reports: deque[Report] = deque()
        self._mark = _NO_MARK
        self._dead = False
        self._voice = Voice(welcome.worker, self.mark, Tape())
        self._teller = Teller(lambda: [self._voice], self._report)
        self._thread = threading.Thread(target=self._run, args=(welcome,), name=f"qnb-lane-{number}", daemon=True)
        self._thread.start()

    def _run(self, welcome: Welcome) -> None:
        runner = Runner(Place(welcome), self._note, self._report, self._voice, self._teller)
        VOICE.set(self._voice)
        watch_imports(whole=False)
        with contextlib.suppress(_LeftToItself):
            while (work := self._works.get()) is not None:
                share_console()
                share_displays()
                runner.run(work)

    def _note(self, serial: int, index: int, started: float) -> None:
        if self._dead:
            raise _LeftToItself  # the calls after the one that was given up are another lane's by now
        self._mark = (serial, index, started)

    def _report(self, report: Report) -> None:
        self._reports.append(report)
        with contextlib.suppress(OSError):  # a killed lane's end is closed, and nobody listens
            self._theirs.send(b"!")

    @property
    def unsent(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self._ours], [], [], seconds)[0])

    def fileno(self) -> int:
        return self._ours.fileno()

    def send(self, work: Work) -> None:
        self._works.put(work)

    def flush(self) -> bool:
        return True

    def receive(self) -> list[Report]:
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(4096)
        if self._dead:
            self._ours.close()
            self._theirs.close()
            raise LaneDied("it is a thread, which cannot be killed: the call was left to itself")
        return [self._reports.popleft() for _ in range(len(self._reports))]

    def mark(self) -> tuple[int, int, float]:
        return self._mark

    def ended(self) -> bool:
        return False

    def bury(self) -> str:
        return "it is a thread"

    def kill(self) -> None:
        self._dead = True
        self._teller.close()
        self._works.put(None)
        with contextlib.suppress(OSError):
            self._theirs.send(b"!")

    def close(self) -> None:
        self._teller.close()
        self._works.put(None)
        self._ours.close()
        self._theirs.close()


def _oom_kills() -> int:
    """How many processes of this container the kernel has killed for want of memory; 0 where nobody counts."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text()
    except OSError:
        return 0
    counts = dict(line.split() for line in text.splitlines())
    return int(counts.get("oom_kill", 0))
