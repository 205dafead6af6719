"""Apache ZooKeeper, as Debian packs it."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.servers.base import QUICK_JAVA, Server, Unavailable, free_port

JARS = [Path("/usr/share/java") / name for name in ("zookeeper.jar", "slf4j-log4j12.jar", "log4j-1.2.jar")]
SETTINGS = {
    "clientPortAddress": "127.0.0.1",
    "tickTime": 500,
    "minSessionTimeout": 1000,
    "maxSessionTimeout": 60000,
    "maxClientCnxns": 0,
    "admin.enableServer": "false",
    "4lw.commands.whitelist": "*",
}
LOGGING = """log4j.rootLogger=WARN, C
log4j.appender.C=org.apache.log4j.ConsoleAppender
log4j.appender.C.layout=org.apache.log4j.PatternLayout
log4j.appender.C.layout.ConversionPattern=%d %p %m%n
"""


class ZookeeperServer(Server):
    """One server alone. It does not wait for the disk: kill -9 loses nothing of it, a power cut might."""

    java = ("-Dzookeeper.forceSync=no",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        found = shutil.which("java")
        missing = [str(jar) for jar in JARS if not jar.exists()]
        if found is None or missing:
            raise Unavailable(f"no {'java' if found is None else missing[0]} here (apt install zookeeper)")
        self._java = found
        self.port = free_port()
        self.url = f"zookeeper://127.0.0.1:{self.port}"
        lines = {"dataDir": folder / "data", "clientPort": self.port, **SETTINGS}
        (folder / "data").mkdir()
        (folder / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        (folder / "log4j.properties").write_text(LOGGING)

    def command(self) -> list[str]:
        small = [*QUICK_JAVA, "-Xmx256m", *self.java]
        logging = f"-Dlog4j.configuration=file:{self.folder}/log4j.properties"
        path = ":".join([str(self.folder), *map(str, JARS)])
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        return [self._java, *small, logging, "-cp", path, main, str(self.folder / "zoo.cfg")]

    def ask(self, word: str) -> str:
        """What it answers to one of its four-letter words."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
            connection.sendall(word.encode())
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def up(self) -> bool:
        said = self.ask("srvr")
        if not said.startswith("Zookeeper version:"):
            return False
        self.version = f"ZooKeeper {said.partition(':')[2].strip().partition('-')[0]}"
        return True


class DurableZookeeper(ZookeeperServer):
    """As it is by default: what it has confirmed is on the disk."""

    java = ()
