"""A private RabbitMQ node, in a folder of its own."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.base import Server, Unavailable, free_port

# Two schedulers, which sleep when they have nothing to do: others need the cores.
_QUIET = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


def find_script() -> str:
    """The script that starts a node. Debian's wrapper in the PATH refuses all users but its own."""
    inside = sorted(glob.glob("/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server"))
    found = inside[-1] if inside else shutil.which("rabbitmq-server")
    if found is None:
        raise Unavailable("no rabbitmq-server here: apt install rabbitmq-server")
    return found


class RabbitServer(Server):
    """`settings` are lines of rabbitmq.conf. kill() is kill -9 of the whole node; start() has its data back."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._distribution = free_port()
        self._script = find_script()
        self._settings = settings
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"
        self.node = f"qnb{self.port}@localhost"
        self._write()

    def _write(self) -> None:
        home = self.folder / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"  # a node that shares none with others, nor starts anything outside its folder
        cookie.write_text(os.urandom(8).hex())
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].\n")
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "log.console.level": "warning",
            "disk_free_limit.absolute": "50MB",
            **{name.replace("__", "."): value for name, value in self._settings.items()},
        }
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (self.folder / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].\n")

    def command(self) -> Sequence[str]:
        return [self._script]

    def environment(self) -> Mapping[str, str]:
        folder = self.folder
        return {
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_QUIET} -kernel inet_dist_use_interface {{127,0,0,1}}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def up(self) -> bool:
        """It greets a client; the port is opened last."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
            probe.sendall(b"AMQP\0\0\x09\x01")
            probe.settimeout(5.0)
            greeting = probe.recv(4096)
        if not greeting.startswith(b"\x01"):
            return False
        at = greeting.find(b"\x07versionS")
        size = int.from_bytes(greeting[at + 9 : at + 13])
        self.version = "RabbitMQ " + greeting[at + 13 : at + 13 + size].decode()
        return True

    def control(self, *arguments: str) -> str:
        """What rabbitmqctl says."""
        script = str(Path(self._script).with_name("rabbitmqctl"))
        command = [script, "-n", self.node, "--quiet", *arguments]
        done = subprocess.run(command, env={**os.environ, **self.environment()}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout
