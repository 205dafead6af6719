"""Storing outcomes with the standard library alone, for the broker's one-transaction settle."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from qnb.brokers.sqlite.schema import extents_of, round_expiry, sweep_statements
from qnb.message import Stored

SWEEP_SECONDS = 60.0


class OutcomeWriter:
    """Writes into the SQL backend's tables within someone's transaction."""

    def __init__(self, prefix: str, expires: float) -> None:
        self._expires = expires
        # One that has expired, and is not swept yet, is no longer in the way.
        self._insert = (
            f"INSERT INTO {prefix}outcomes(run, first, count, expires_at, data) VALUES(?, ?, ?, ?, ?) "
            "ON CONFLICT(run, first) DO UPDATE SET count = excluded.count, expires_at = excluded.expires_at, "
            "data = excluded.data WHERE expires_at <= ?"
        )
        self._extent = f"INSERT OR IGNORE INTO {prefix}extents(run, width, expires_at) VALUES(?, ?, ?)"
        self._sweep = sweep_statements(prefix)
        self._sweep_at = time.monotonic() + SWEEP_SECONDS

    def write(self, connection: sqlite3.Connection, records: Sequence[Stored]) -> list[Stored]:
        """Store records; those refused because one of the same run and `first` is there."""
        if not records:
            return []
        now = time.time()
        until = round_expiry(now, self._expires)
        if time.monotonic() > self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            for statement in self._sweep:
                connection.execute(statement, {"now": now})
        for extent in extents_of(records, until):
            connection.execute(self._extent, extent)
        return [
            record
            for record in records
            if not connection.execute(
                self._insert, (record.run, record.first, record.count, until, record.data, now)
            ).rowcount
        ]
