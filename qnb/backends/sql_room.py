"""How much room the embedded file takes, and what goes first when that is too much: what was put the longest ago."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from qnb.settings import FOLDER, Address

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 30  # of a file in ./.qnb/; a file that somebody has named has no bound but the one he names
YOUNG_SECONDS = 3600.0  # what is younger stays in any case: it may belong to calls that have not run yet
BEFORE_SECONDS = 7200.0  # what a run uses was put, or put again, at most that long before it
_ROWS, _RUNS = 64, 4  # dropped at a time
# Outcomes: neither what schedules keep there, nor whose the keys of `key=` are.
_ONLY = {"blobs": "", "outcomes": " AND run NOT LIKE 'schedules%' AND run NOT LIKE '%.t' AND run NOT LIKE 'key-%'"}
_KEYS = {"blobs": ("name",), "outcomes": ("run", "first")}
PINNED = "schedules.blobs"  # a run whose outcomes name blobs, with spaces between: what schedules need


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
        files = [self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))]
        return sum(file.stat().st_size for file in files if file.exists())

    def make(self, engine: Rows) -> None:
        """Drop values and outcomes until the rest is within the bound: the oldest of what no run under way needs, then
        the oldest of the rest. What schedules need stays. Free pages are used again."""
        if self.taken <= self.most or (used := self._used(engine)) <= self.most:
            return
        plenty = self._expires - YOUNG_SECONDS + time.time()  # what was put before now - YOUNG expires before that
        open_runs = self._open(engine)
        begun = min(open_runs.values(), default=math.inf)
        idle = min(plenty, begun - BEFORE_SECONDS + self._expires)
        pinned = {key.decode() for (data,) in self._pins(engine) for key in bytes(data).split()}
        rounds: tuple[Callable[[], int], ...] = (
            lambda: self._drop(engine, "blobs", idle, pinned) + self._drop_over(engine, plenty, open_runs),
            lambda: self._drop(engine, "blobs", plenty, pinned) + self._drop(engine, "outcomes", plenty, ()),
        )
        for number, drop in enumerate(rounds):
            dropped = 0
            while used > self.most and (gone := drop()):
                dropped += gone
                used = self._used(engine)
            if dropped:
                what = f"; {len(open_runs)} runs that are not over may need them" if number and open_runs else ""
                log.warning("%s was over most=%d bytes: the %d oldest values and runs were dropped%s",
                            self._path, self.most, dropped, what)  # fmt: skip
        if used > self.most:
            log.warning("%s holds %d bytes of the last hour or of schedules, more than most=%d",
                        self._path, used, self.most)  # fmt: skip

    def _pins(self, engine: Rows) -> Any:
        return engine.rows(f"SELECT data FROM {engine.names['outcomes']} WHERE run = :run", {"run": PINNED})

    def _open(self, engine: Rows) -> dict[str, float]:
        """The runs that are not over, and when each began."""
        now = {"now": time.time()}
        runs = f"FROM {engine.names['runs']} WHERE expires_at > :now AND kind <> 'schedule'"
        begun = {run: (count, at) for run, count, at in engine.rows(f"SELECT run, count, created_at {runs}", now)}
        ended: dict[str, int] = {}
        covered: dict[str, int] = {}  # up to where; records may overlap
        query = f"SELECT run, first, count FROM {engine.names['outcomes']} WHERE run IN (SELECT run {runs})"
        for run, first, count in engine.rows(f"{query} ORDER BY run, first", now):
            end = max(covered.get(run, 0), first + count)
            ended[run] = ended.get(run, 0) + end - max(covered.get(run, 0), first)
            covered[run] = end
        query = f"SELECT DISTINCT run FROM {engine.names['extents']} WHERE run IN (SELECT run {runs})"
        over = {run for (run,) in engine.rows(query, now)} - covered.keys()  # all that was stored of it was dropped
        return {
            run: at
            for run, (count, at) in begun.items()
            if run not in over and (count is None or ended.get(run, 0) < count)
        }

    def _used(self, engine: Rows) -> int:
        [[pages]] = engine.rows("SELECT page_count FROM pragma_page_count()", {})
        [[free]] = engine.rows("SELECT freelist_count FROM pragma_freelist_count()", {})
        [[size]] = engine.rows("SELECT page_size FROM pragma_page_size()", {})
        return int((pages - free) * size)

    def _drop(self, engine: Rows, table: str, old: float, kept: Collection[str]) -> int:
        """Some of the oldest, but for those whose name or run is kept; how many."""
        name, keys = engine.names[table], _KEYS[table]
        where = f"expires_at < :old AND {keys[0]} NOT IN (SELECT value FROM json_each(:kept)){_ONLY[table]}"
        query = f"SELECT {', '.join(keys)} FROM {name} WHERE {where} ORDER BY expires_at LIMIT {_ROWS}"
        values = {"old": old, "kept": json.dumps(list(kept))}
        found = [dict(zip(keys, row, strict=True)) for row in engine.rows(query, values)]
        if found:
            engine.run([f"DELETE FROM {name} WHERE {' AND '.join(f'{key} = :{key}' for key in keys)}"], found)
        return len(found)

    def _drop_over(self, engine: Rows, old: float, kept: Collection[str]) -> int:
        """All outcomes of some runs, those that ended the longest ago; how many runs. Their records go too, or whoever
        attaches, or waits for one of their values, would take them for runs that are under way."""
        name, runs = engine.names["outcomes"], engine.names["runs"]
        query = f"SELECT run FROM {name} WHERE run NOT IN (SELECT value FROM json_each(:kept)){_ONLY['outcomes']}"
        query += f" GROUP BY run HAVING max(expires_at) < :old ORDER BY max(expires_at) LIMIT {_RUNS}"
        found = [{"run": run} for (run,) in engine.rows(query, {"old": old, "kept": json.dumps(list(kept))})]
        if found:
            engine.run([f"DELETE FROM {name} WHERE run = :run",
                        f"DELETE FROM {runs} WHERE run = :run AND kind <> 'schedule'"], found)  # fmt: skip
        return len(found)
