"""What the database servers share: they refuse to run as root, so under root they run as their package's own user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import time
from pathlib import Path

import psutil

from tests.servers.base import Server, Unavailable


class DatabaseServer(Server):
    """A server that runs as another user where the tests run as root; kill() ends its children too."""

    users: tuple[str, ...] = ("nobody",)  # the first of these that this machine has

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.user: str | None = None
        if os.geteuid() == 0:
            self._leave_root()

    def _leave_root(self) -> None:
        known = {each.pw_name for each in pwd.getpwall()}
        self.user = next((name for name in self.users if name in known), None)
        if self.user is None or shutil.which("setpriv") is None:
            raise Unavailable(
                f"it refuses root: run the tests as a plain user, or add setpriv and user {self.users[0]}"
            )
        self.folder.parent.chmod(0o711)  # the tests' own folder in /tmp: let that user through to its part
        shutil.chown(self.folder, self.user)
        self.folder.chmod(0o700)

    def as_user(self, *command: str) -> list[str]:
        """The command, under root as the server's own user. The new process takes this one's place."""
        if self.user is None:
            return list(command)
        group = str(pwd.getpwnam(self.user).pw_gid)
        change = ["setpriv", f"--reuid={self.user}", f"--regid={group}", "--clear-groups", "--pdeathsig", "KILL"]
        return [*change, *command]

    def kill(self) -> None:
        """Kill -9 of all its processes: some servers' children are each the head of a group of their own."""
        if self._process is not None and self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(self.pid).children(recursive=True)
                os.kill(self.pid, signal.SIGKILL)
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
                while any(_lives(child) for child in children):  # they hold its shared memory, and it needs that again
                    time.sleep(0.005)
        super().kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
