"""PostgreSQL, as a package of the system has it."""

from __future__ import annotations

import glob
import re
import shutil
import subprocess
from pathlib import Path

from tests.servers.base import Unavailable, free_port
from tests.servers.database import DatabaseServer

PASSWORD = "open-sesame"


def find_postgresql() -> Path:
    """The folder of initdb and postgres; packages keep them out of the PATH."""
    path = shutil.which("postgres")
    places = [Path(path).parent] if path else []
    versions = (
        glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin") + glob.glob("/opt/*/postgresql*/bin")
    )
    places += map(Path, sorted(versions, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], reverse=True))
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    raise Unavailable("no PostgreSQL server here (apt install postgresql)")


class PostgresqlServer(DatabaseServer):
    """A private PostgreSQL. Nothing is flushed to the disk: it outlives kill -9, not a power cut."""

    users = ("postgres", "nobody")
    start_seconds = 30.0
    settings = ("fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=32MB", "max_wal_size=256MB")

    def __init__(self, folder: Path) -> None:
        self.binaries = find_postgresql()
        super().__init__(folder)
        self.port = free_port()
        self.url = f"postgresql://qnb:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        said = subprocess.run([self.binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        self.version = f"PostgreSQL {said.stdout.partition(')')[2].split()[0]}"
        (folder / "password").write_text(PASSWORD)
        if self.user:
            shutil.chown(folder / "password", self.user)
        options = ["--username=qnb", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        command = self.as_user(str(self.binaries / "initdb"), "-D", "data", f"--pwfile={folder}/password", *options)
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if made.returncode:
            raise Unavailable(f"initdb failed: {made.stderr.strip()[-300:]}")

    def command(self) -> list[str]:
        place = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        settings = [part for setting in (*place, *self.settings) for part in ("-c", setting)]
        return self.as_user(str(self.binaries / "postgres"), "-D", "data", *settings)

    def up(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
