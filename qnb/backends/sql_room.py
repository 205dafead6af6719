"""How much room the embedded file takes, and what goes first when that is too much: what was put the longest ago."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from qnb.settings import FOLDER, Address

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 30  # of a file in ./.qnb/; a file that somebody has named has no bound but the one he names
YOUNG_SECONDS = 3600.0  # what is younger stays in any case: it may belong to calls that have not run yet
_ROWS = 64
# Of outcomes neither what schedules keep there, nor whose the keys of `key=` are.
_ONLY = {"blobs": "", "outcomes": " AND run NOT LIKE 'schedules%' AND run NOT LIKE '%.t' AND run NOT LIKE 'key-%'"}
_KEYS = {"blobs": ("name",), "outcomes": ("run", "first")}


class Rows(Protocol):
    """The part of an Engine that is needed here."""

    @property
    def names(self) -> Mapping[str, str]: ...
    def rows(self, statement: str, values: Mapping[str, Any]) -> Any: ...
    def run(self, statements: Any, values: Any) -> None: ...


class Room:
    """Of one file."""

    def __init__(self, path: Path, address: Address, expires: float) -> None:
        self._path = path
        self._expires = expires
        self.most = address.number("most", MOST_BYTES if path.parent.name == FOLDER else math.inf)

    @property
    def taken(self) -> int:
        """Bytes on the disk."""
        files = [self._path, self._path.with_name(self._path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def make(self, engine: Rows) -> None:
        """Drop the oldest values and outcomes until the rest is within the bound. Free pages are used again."""
        if self.taken <= self.most:
            return
        old = time.time() + self._expires - YOUNG_SECONDS  # what was put before now expires before that
        dropped = 0
        while (used := self._used(engine)) > self.most:
            gone = sum(self._drop(engine, table, old) for table in _KEYS)
            if not gone:
                log.warning("%s holds %d bytes of the last hour, more than most=%d", self._path, used, self.most)
                break
            dropped += gone
        if dropped:
            log.warning("%s was over most=%d bytes: the %d oldest values were dropped", self._path, self.most, dropped)

    def _used(self, engine: Rows) -> int:
        [[pages]] = engine.rows("SELECT page_count FROM pragma_page_count()", {})
        [[free]] = engine.rows("SELECT freelist_count FROM pragma_freelist_count()", {})
        [[size]] = engine.rows("SELECT page_size FROM pragma_page_size()", {})
        return int((pages - free) * size)

    def _drop(self, engine: Rows, table: str, old: float) -> int:
        name, keys = engine.names[table], _KEYS[table]
        where = f"expires_at < :old{_ONLY[table]}"
        query = f"SELECT {', '.join(keys)} FROM {name} WHERE {where} ORDER BY expires_at LIMIT {_ROWS}"
        found = [dict(zip(keys, row, strict=True)) for row in engine.rows(query, {"old": old})]
        if found:
            engine.run([f"DELETE FROM {name} WHERE {' AND '.join(f'{key} = :{key}' for key in keys)}"], found)
        return len(found)
