"""Outcomes, runs and blobs in an SQL database: the embedded file, PostgreSQL or MySQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from qnb.backends.base import RESULT_SECONDS
from qnb.backends.sql_engine import AlchemyEngine, Engine, FileEngine
from qnb.brokers.sqlite_schema import sweep_statements, table_prefix
from qnb.errors import BackendUnavailable
from qnb.message import RunRecord, Stored
from qnb.settings import embedded_path, parse_url

SWEEP_SECONDS = 60.0
# Spans asked for in one statement.
SPANS = 100
_RUN = "run, kind, name, count, created_at, session, data"


class SqlBackend:
    """`sqlite:` is reached by the standard library, `sqlite+pysqlite:` and all others by SQLAlchemy."""

    scheme: ClassVar[str] = "sqlite"
    durable: ClassVar[bool] = True
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        self._address = parse_url(url)
        self.url = str(self._address)
        self.prefix = table_prefix(self._address.options.get("prefix"))
        self.expires = self._address.number("expires", RESULT_SECONDS)
        is_file = self._address.scheme.partition("+")[0] == "sqlite"
        self.path: Path | None = embedded_path(self._address) if is_file else None
        self._lock = threading.Lock()
        self._opened: Engine | None = None
        self._closed = False
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        if self.path is None:
            self._open()  # a server that is not there is said now; the file is opened when first needed

    def _open(self) -> Engine:
        if self.path is not None and self._address.scheme == "sqlite":
            self._opened = FileEngine(self.path, self.prefix, self.expires)
        else:
            self._opened = AlchemyEngine(self._address, self.prefix, self.expires, self.path)
        return self._opened

    @property
    def _engine(self) -> Engine:
        with self._lock:
            if self._closed:
                raise BackendUnavailable(f"{self.url} is closed: open a new one")
            return self._opened or self._open()

    def _sweep(self) -> None:
        """Drop what has expired, at most once a minute."""
        if time.monotonic() > self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            self._engine.run(sweep_statements(self.prefix), [{"now": time.time()}])

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        if not outcomes:
            return []
        self._sweep()
        return self._engine.store(outcomes)

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        table = f"FROM {self.prefix}outcomes WHERE run = :run AND expires_at > :now"
        values: dict[str, Any] = {"run": run, "now": time.time()}
        if spans is None:
            rows = self._engine.rows(f"SELECT first, count, data {table} ORDER BY first", values)
            return [Stored(run, first, count, data) for first, count, data in rows]
        widest = self._engine.rows(f"SELECT max(width) FROM {self.prefix}extents WHERE run = :run", {"run": run})[0][0]
        if widest is None:
            return []
        found: dict[int, Stored] = {}
        joined = _join(spans)
        for start in range(0, len(joined), SPANS):
            some = dict(values)
            parts = []
            for i, (first, end) in enumerate(joined[start : start + SPANS]):
                # A record that touches the span begins before its end, and not further before it than records are wide.
                some |= {f"low{i}": first - widest, f"first{i}": first, f"end{i}": end}
                parts.append(f"first > :low{i} AND first < :end{i} AND first + count > :first{i}")
            query = " UNION ALL ".join(f"SELECT first, count, data {table} AND {part}" for part in parts)
            for first, count, data in self._engine.rows(query, some):
                found[first] = Stored(run, first, count, data)
        return [found[first] for first in sorted(found)]

    def save_run(self, record: RunRecord) -> None:
        self._sweep()
        row = {name: getattr(record, name) for name in _RUN.split(", ")}
        self._engine.put("runs", [row | {"expires_at": time.time() + self.expires}], replace=True)

    def load_run(self, run: str) -> RunRecord | None:
        query = f"SELECT {_RUN} FROM {self.prefix}runs WHERE run = :run AND expires_at > :now"
        rows = self._engine.rows(query, {"run": run, "now": time.time()})
        return RunRecord(*rows[0]) if rows else None

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        query = f"SELECT {_RUN} FROM {self.prefix}runs WHERE expires_at > :now ORDER BY created_at DESC LIMIT :limit"
        return [RunRecord(*row) for row in self._engine.rows(query, {"now": time.time(), "limit": limit})]

    def forget_run(self, run: str) -> None:
        tables = ("outcomes", "extents", "runs", "revocations")
        self._engine.run([f"DELETE FROM {self.prefix}{table} WHERE run = :run" for table in tables], [{"run": run}])

    def put_blob(self, key: str, data: bytes) -> None:
        self._sweep()
        now = time.time()
        there = self._engine.rows(f"SELECT expires_at FROM {self.prefix}blobs WHERE name = :name", {"name": key})
        # Put anew only when half of its time is over: a function is put by every session, and is not sent each time.
        if not there or there[0][0] < now + self.expires / 2:
            row = {"name": key, "expires_at": now + self.expires, "data": bytes(data)}
            self._engine.put("blobs", [row], replace=True)

    def get_blob(self, key: str) -> bytes | None:
        query = f"SELECT data FROM {self.prefix}blobs WHERE name = :name AND expires_at > :now"
        rows = self._engine.rows(query, {"name": key, "now": time.time()})
        return bytes(rows[0][0]) if rows else None

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        if spans:
            until = time.time() + self.expires
            rows = [{"run": run, "first": first, "count": count, "expires_at": until} for run, first, count in spans]
            self._engine.put("revocations", rows, replace=True)

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        query = f"SELECT run, first, count FROM {self.prefix}revocations WHERE expires_at > :now"
        return [(run, first, count) for run, first, count in self._engine.rows(query, {"now": time.time()})]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened.close()


def _join(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, count) spans as (first, end), those that touch made one."""
    joined: list[tuple[int, int]] = []
    for first, count in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], first + count))
        elif count > 0:
            joined.append((first, first + count))
    return joined
