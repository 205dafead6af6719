"""Outcomes, runs and blobs in an SQL database: the embedded file, PostgreSQL, MySQL or MariaDB."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from qnb.backends.base import RESULT_SECONDS
from qnb.backends.spans import join
from qnb.backends.sql_engine import Engine, FileEngine
from qnb.backends.sql_room import PINNED, Room
from qnb.brokers.sqlite.schema import BACKEND_TABLES, table_prefix
from qnb.errors import BackendUnavailable
from qnb.message import RunRecord, Stored
from qnb.settings import embedded_path, parse_url

SWEEP_SECONDS = 60.0
SWEEP_RUNS = 200
FRESH_SECONDS = 600.0  # a blob of a file that is put again after that counts as put now
# Spans asked for in one statement.
SPANS = 100
_RUN = "run, kind, name, count, created_at, session, data"


class SqlBackend:
    """`sqlite:` is reached by the standard library, `sqlite+pysqlite:` and all others by SQLAlchemy.

    `postgresql://user:password@host:port/database`, `mysql://…`, `mariadb://…`; a driver may be named as in SQLAlchemy
    (`postgresql+psycopg:`, `mysql+pymysql:`, which are the defaults), and Celery's `db+…` is taken too. PostgreSQL may
    have several hosts with commas. The tables are made when they are not there.

    Options of the URL, all but the first three for servers only:

        most=4294967296      bytes that a file may take, by default one in ./.qnb/; above, the oldest values go first
        expires=604800       seconds that all is kept; whoever stores sweeps what has expired, about once a minute
        prefix=qnb_          what the tables' names begin with; table_prefix= is the same
        schema=NAME          the schema (MySQL: database) of the tables; made when it is not there
        outcomes_table=NAME  the whole name of a table; likewise extents_, runs_, blobs_ and revocations_table
        create_tables=false  never make tables or a schema: the user has no right to
        pool_size, max_overflow, pool_timeout, pool_recycle, pool_pre_ping, pool_use_lifo, isolation_level, echo
                             as in SQLAlchemy's create_engine
        all others           to the driver: sslmode, ssl_ca, connect_timeout, application_name …

    An outcome is one sealed record of a contiguous range of calls, in columns: states, values, tracebacks, worker,
    times and attempt. So what Celery calls extended results is there on every backend, without columns of its own.
    """

    scheme: ClassVar[str] = "sqlite"
    durable: ClassVar[bool] = True
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        self._address = parse_url(url)
        self.url = str(self._address)
        options = self._address.options
        self.prefix = table_prefix(options.get("prefix", options.get("table_prefix")))
        self.expires = self._address.number("expires", RESULT_SECONDS)
        is_file = self._address.scheme.partition("+")[0] == "sqlite"
        self.path: Path | None = embedded_path(self._address) if is_file else None
        self._room = None if self.path is None else Room(self.path, self._address, self.expires)
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
            from qnb.backends.sql_alchemy import AlchemyEngine

            self._opened = AlchemyEngine(self._address, self.prefix, self.expires, self.path)
        return self._opened

    @property
    def _engine(self) -> Engine:
        with self._lock:
            if self._closed:
                raise BackendUnavailable(f"{self.url} is closed: open a new one")
            return self._opened or self._open()

    @property
    def record_bytes(self) -> int | None:
        """The longest record or blob that the server takes; None where there is no bound worth asking for."""
        return getattr(self._engine, "record_bytes", None)

    @property
    def room(self) -> tuple[int, float] | None:
        """Of a file: bytes that it takes, and that it may take (inf: any number)."""
        return None if self._room is None else (self._room.taken, self._room.most)

    def _sweep(self) -> None:
        """Drop what has expired, about once a minute, some runs at a time: nobody's store waits long for it."""
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + SWEEP_SECONDS * random.uniform(1, 2)
        engine, now = self._engine, time.time()
        names = engine.names
        # Of outcomes only runs in which something has expired are looked at. Two statements: MySQL reads a whole table
        # for a DELETE whose rows another SELECT names.
        query = f"SELECT DISTINCT run FROM {names['extents']} WHERE expires_at <= :now LIMIT {SWEEP_RUNS}"
        runs = [{"run": run, "now": now} for (run,) in engine.rows(query, {"now": now})]
        if runs:
            both = [
                f"DELETE FROM {names[table]} WHERE run = :run AND expires_at <= :now"
                for table in ("outcomes", "extents")
            ]
            engine.run(both, runs)
        rest = [names[table] for table in BACKEND_TABLES if table not in ("outcomes", "extents")]
        engine.run([f"DELETE FROM {name} WHERE expires_at <= :now" for name in rest], [{"now": now}])
        if self._room is not None:
            self._room.make(engine)
        if len(runs) == SWEEP_RUNS:
            self._sweep_at = time.monotonic() + 1.0

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        if not outcomes:
            return []
        self._sweep()
        return self._engine.store(outcomes)

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        engine = self._engine
        table = f"FROM {engine.names['outcomes']} WHERE run = :run AND expires_at > :now"
        values: dict[str, Any] = {"run": run, "now": time.time()}
        if spans is None:
            rows = engine.rows(f"SELECT first, count, data {table} ORDER BY first", values)
            return [Stored(run, first, count, data) for first, count, data in rows]
        extents = f"SELECT max(width) FROM {engine.names['extents']} WHERE run = :run"
        widest = engine.rows(extents, {"run": run})[0][0]
        if widest is None:
            return []
        found: dict[int, Stored] = {}
        joined = join(spans)
        for start in range(0, len(joined), SPANS):
            some = dict(values)
            parts = []
            for i, (first, end) in enumerate(joined[start : start + SPANS]):
                # A record that touches the span begins before its end, and not further before it than records are wide.
                some |= {f"low{i}": first - widest, f"first{i}": first, f"end{i}": end}
                parts.append(f"first > :low{i} AND first < :end{i} AND first + count > :first{i}")
            query = " UNION ALL ".join(f"SELECT first, count, data {table} AND {part}" for part in parts)
            for first, count, data in engine.rows(query, some):
                found[first] = Stored(run, first, count, data)
        return [found[first] for first in sorted(found)]

    def save_run(self, record: RunRecord) -> None:
        self._sweep()
        row = {name: getattr(record, name) for name in _RUN.split(", ")}
        self._engine.put("runs", [row | {"expires_at": time.time() + self.expires}])

    def load_run(self, run: str) -> RunRecord | None:
        query = f"SELECT {_RUN} FROM {self._engine.names['runs']} WHERE run = :run AND expires_at > :now"
        rows = self._engine.rows(query, {"run": run, "now": time.time()})
        return RunRecord(*rows[0]) if rows else None

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        table = self._engine.names["runs"]
        query = f"SELECT {_RUN} FROM {table} WHERE expires_at > :now ORDER BY created_at DESC LIMIT :limit"
        return [RunRecord(*row) for row in self._engine.rows(query, {"now": time.time(), "limit": limit})]

    def forget_run(self, run: str) -> None:
        tables = ("outcomes", "extents", "runs", "revocations")
        self._engine.run(
            [f"DELETE FROM {self._engine.names[table]} WHERE run = :run" for table in tables], [{"run": run}]
        )

    def put_blob(self, key: str, data: bytes) -> None:
        self._sweep()
        now = time.time()
        there = self._engine.rows(
            f"SELECT expires_at FROM {self._engine.names['blobs']} WHERE name = :name", {"name": key}
        )
        # Put anew only when half of its time is over: a function is put by every session, and is not sent each time.
        if not there or there[0][0] < now + self.expires / 2:
            row = {"name": key, "expires_at": now + self.expires, "data": bytes(data)}
            self._engine.put("blobs", [row])
        elif self._room is not None and there[0][0] < now + self.expires - FRESH_SECONDS:
            # What goes first where there is no room is what was put the longest ago.
            statement = f"UPDATE {self._engine.names['blobs']} SET expires_at = :expires_at WHERE name = :name"
            self._engine.run([statement], [{"name": key, "expires_at": now + self.expires}])

    def pin(self, keys: Sequence[str]) -> None:
        """These blobs are not dropped for want of room, for as long as outcomes are kept."""
        if self._room is not None:
            first = max((record.first for record in self.fetch_many(PINNED)), default=-1) + 1
            while self.store_many([Stored(PINNED, first, 1, " ".join(keys).encode())]):
                first += 1

    def get_blob(self, key: str) -> bytes | None:
        query = f"SELECT data FROM {self._engine.names['blobs']} WHERE name = :name AND expires_at > :now"
        rows = self._engine.rows(query, {"name": key, "now": time.time()})
        return bytes(rows[0][0]) if rows else None

    def forget_blobs(self, keys: Sequence[str]) -> None:
        if keys:
            name = self._engine.names["blobs"]
            self._engine.run([f"DELETE FROM {name} WHERE name = :name"], [{"name": key} for key in keys])

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        if spans:
            until = time.time() + self.expires
            rows = [{"run": run, "first": first, "count": count, "expires_at": until} for run, first, count in spans]
            self._engine.put("revocations", rows)

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        query = f"SELECT run, first, count FROM {self._engine.names['revocations']} WHERE expires_at > :now"
        return [(run, first, count) for run, first, count in self._engine.rows(query, {"now": time.time()})]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened.close()
