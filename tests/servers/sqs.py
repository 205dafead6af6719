"""SQS as PyPI's ministack has it: one process, in memory. It looks for news ten times a second."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.servers.base import Server, Unavailable, free_port, port_is_open

# Its queues take messages of 256 KiB, those of AWS of 1 MiB.
MESSAGE_SIZE = 262144
_SETTINGS = {"SERVICES": "sqs", "LOG_LEVEL": "ERROR", "PERSIST_STATE": "1"}


class SqsServer(Server):
    """A private ministack. All it holds is gone with it."""

    stands_for = "Amazon SQS"
    start_seconds = 20.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if importlib.util.find_spec("ministack") is None:
            raise Unavailable("pip install ministack brings it")
        self.version = f"ministack {version('ministack')}"
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.url = f"sqs://test:test@127.0.0.1:{self.port}/?region=us-east-1&message_size={MESSAGE_SIZE}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ministack"]

    def environment(self) -> Mapping[str, str]:
        return {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port), **_SETTINGS, "STATE_DIR": str(self.folder)}

    def restart(self) -> None:
        """Away, and back with what it held. It is told to end, as it writes its data then; AWS needs no such grace."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        self.start()

    def up(self) -> bool:
        return port_is_open(self.port)
