"""What a session has put into the blob store, and need not put again while it is surely there."""

from __future__ import annotations

import time

from qnb.backends.base import RESULT_SECONDS, Backend
from qnb.settings import parse_url

SECONDS = 3600.0  # at most: the store may have been emptied by somebody
_MOST = 10_000


class StoredBlobs:
    """By key. `seconds`: for which one is taken for stored, a quarter of what the backend keeps it at most."""

    def __init__(self, backend: Backend) -> None:
        expires = parse_url(backend.url).number("expires", RESULT_SECONDS) if backend.blobs else 0.0
        self.seconds = min(SECONDS, expires / 4)
        self._until: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return time.monotonic() < self._until.get(key, 0.0)

    def add(self, key: str) -> None:
        """It has just been put."""
        if len(self._until) >= _MOST:
            now = time.monotonic()
            self._until = {key: until for key, until in self._until.items() if until > now}
        self._until[key] = time.monotonic() + self.seconds
