"""A private server: started on a free port in a folder of its own, killed with the test run that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Of Java: what a server that lives for minutes has from the costlier compiler and collector is less than they take.
QUICK_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class Unavailable(Exception):
    """This server cannot be had here; the message says why and how it could."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """In the child: even a test run that is killed leaves no server behind (Linux; elsewhere atexit has to do).

    It dies with the thread that has started it: a server is started in a thread that stays.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# Its one thread starts all servers: to the kernel the parent of a process is the thread that made it, and a server that
# a short-lived thread of a test had started died with that thread.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="servers")


class Server:
    """A process. A subclass says how it is started, when it is up, and where it is; kill() is kill -9, start() brings
    it back on the same port and folder."""

    start_seconds = 60.0
    version = ""
    url = ""
    stands_for = ""  # the service that no test can have, and that this is tested in place of

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    # What a subclass says ----------------------------------------------------------------------------------------

    def command(self) -> Sequence[str]:
        """What to run; called at each start."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What to add to the environment."""
        return {}

    def up(self) -> bool:
        """Whether it serves; OSError counts as not."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._process = _STARTER.submit(self._spawn).result()
        deadline = time.monotonic() + self.start_seconds
        while not self._is_up():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                list(self.command()),
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        try:
            return self.up()
        except OSError:
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill -9 of it and all that it started, as an accident."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        """Away by accident, and back on the same data."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Gone for good, with its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def port_is_open(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
