"""MariaDB or MySQL, as a package of the system has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.servers.base import Unavailable, free_port
from tests.servers.database import DatabaseServer

PASSWORD = "open-sesame"
# Run at each start.
_USERS = f"""CREATE DATABASE IF NOT EXISTS qnb;
CREATE USER IF NOT EXISTS 'qnb'@'%' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON qnb.* TO 'qnb'@'%';
CREATE USER IF NOT EXISTS 'reader'@'%' IDENTIFIED BY '{PASSWORD}';
GRANT SELECT ON qnb.* TO 'reader'@'%';
"""


def _find(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/libexec")
    if path is None:
        raise Unavailable(f"no {name} here (apt install mariadb-server)")
    return path


class MariadbServer(DatabaseServer):
    """A private MariaDB. Written to the system at each commit, and to the disk later: it outlives kill -9."""

    users = ("mysql", "nobody")
    settings = (
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=32M",
        "--skip-name-resolve",
        "--skip-log-bin",
        "--max-connections=200",
    )

    def __init__(self, folder: Path) -> None:
        self.binary, install = _find("mariadbd"), _find("mariadb-install-db")
        super().__init__(folder)
        self.port = free_port()
        self.url = f"mysql://qnb:{PASSWORD}@127.0.0.1:{self.port}/qnb"
        said = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = f"MariaDB {said.partition('Ver ')[2].split('-')[0]}"
        (folder / "users.sql").write_text(_USERS)
        options = [f"--datadir={folder}/data", "--auth-root-authentication-method=normal", "--skip-test-db"]
        command = self.as_user(install, "--no-defaults", *options, "--innodb-log-file-size=32M")
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if made.returncode:
            raise Unavailable(f"mariadb-install-db failed: {(made.stderr or made.stdout).strip()[-300:]}")

    def command(self) -> list[str]:
        here = [f"--datadir={self.folder}/data", f"--socket={self.folder}/s", f"--pid-file={self.folder}/pid"]
        net = [f"--port={self.port}", "--bind-address=127.0.0.1", f"--init-file={self.folder}/users.sql"]
        return self.as_user(self.binary, "--no-defaults", *here, *net, *self.settings)

    def up(self) -> bool:
        import pymysql

        try:
            pymysql.connect(
                host="127.0.0.1", port=self.port, user="qnb", password=PASSWORD, database="qnb", connect_timeout=2
            ).close()
        except pymysql.err.OperationalError:
            return False
        return True
