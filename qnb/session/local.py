"""Workers beside the kernel: what a Session starts when it is told to."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import IO, Any

from qnb.settings import FOLDER, child_environment, lane_environment, parse_url

LINGER_SECONDS = 60.0


class LocalWorkers:
    """A worker process with `concurrency` lanes, detached: Ctrl-C and the kernel's end do not reach it."""

    shares_broker = False

    def __init__(self, broker: str, backend: str, key: bytes, queue: str, concurrency: int) -> None:
        self.name = f"local-{os.getpid()}-{secrets.token_hex(2)}"
        command = [
            sys.executable, "-m", "qnb.cli", "worker", "--queues", queue, "--concurrency", str(concurrency),
            "--name", self.name, "--linger", str(LINGER_SECONDS),
        ]  # fmt: skip
        # URLs may hold passwords and the key is one: neither belongs on a command line that `ps` shows.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        private = {"QNB_BROKER": broker, "QNB_BACKEND": backend, "QNB_KEY": key.decode()}
        environment = lane_environment() | child_environment(**private, PYTHONPATH=path)
        log = _log_file()
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        if log is not None:
            log.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def stop(self, timeout: float = 10.0) -> None:
        """Warm shutdown, then a cold one."""
        for _ in range(2):
            if self.alive:
                self._process.terminate()
                try:
                    self._process.wait(timeout)
                except subprocess.TimeoutExpired:
                    continue
        if self.alive:
            self._process.kill()
            self._process.wait()


class ThreadWorkers:
    """Workers of a memory: broker, which no other process can reach: threads of this one."""

    def __init__(self, broker: Any, backend: Any, key: bytes, queue: str, concurrency: int) -> None:
        from qnb.worker.loop import Worker, WorkerOptions

        name = f"threads-{os.getpid()}-{secrets.token_hex(2)}"
        self._worker = Worker(broker, backend, key, WorkerOptions(name, (queue,), concurrency, "thread"))
        self._worker.start()

    alive = True
    shares_broker = True

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what runs; what is not over after `timeout` is left to itself."""
        self._worker.stop()
        if not self._worker.stopped.wait(timeout):
            self._worker.stop(cold=True)


def _log_file() -> IO[bytes] | None:
    """Where local workers and their tasks print to: .qnb/worker.log, cut when it has grown over 10 MB."""
    path = os.path.join(FOLDER, "worker.log")
    try:
        if not os.path.isdir(FOLDER):
            return open(os.devnull, "ab")
        mode = "wb" if os.path.exists(path) and os.path.getsize(path) > 10_000_000 else "ab"
        return open(path, mode)
    except OSError:
        return open(os.devnull, "ab")


def start(broker: Any, backend: Any, urls: tuple[str, str], key: bytes, queue: str, concurrency: int) -> Any:
    """Workers that fit the broker."""
    if parse_url(urls[0]).scheme == "memory":
        return ThreadWorkers(broker, backend, key, queue, concurrency)
    return LocalWorkers(urls[0], urls[1], key, queue, concurrency)
