"""How the SQL backend reaches its database: the standard library for the embedded file, SQLAlchemy for all others.

SQLAlchemy takes longer to import than an embedded session may take to its first result. Both ways run the same
statements; what dialects say differently stands in sql_alchemy.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qnb.brokers.sqlite.file import Database
from qnb.brokers.sqlite.outcomes import OutcomeWriter
from qnb.brokers.sqlite.schema import BACKEND_TABLES, backend_statements
from qnb.errors import BackendUnavailable
from qnb.message import Stored

Values = Mapping[str, Any]


class Engine(Protocol):
    """What the backend asks of a database."""

    @property
    def names(self) -> Mapping[str, str]:
        """Table → its name in a statement."""

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        """The rows of one query."""

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        """Each statement for each of the values, in one transaction."""

    def put(self, table: str, rows: Sequence[Values]) -> None:
        """Insert rows, each in place of one with the same key."""

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        """Insert outcomes; those refused."""

    def close(self) -> None:
        """Close what is open."""


class FileEngine:
    """The embedded file, by the standard library."""

    def __init__(self, path: Path, prefix: str, expires: float) -> None:
        self.names = {table: f"{prefix}{table}" for table in BACKEND_TABLES}
        self._outcomes = OutcomeWriter(prefix, expires)
        self._database = Database(path, backend_statements(prefix), unavailable=BackendUnavailable)

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        return self._database.read(statement, values)

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        with self._database.lock, self._database.transaction as connection:
            for statement in statements:
                connection.executemany(statement, values)

    def put(self, table: str, rows: Sequence[Values]) -> None:
        columns = list(rows[0])
        marks = ", ".join(f":{column}" for column in columns)
        self.run([f"INSERT OR REPLACE INTO {self.names[table]}({', '.join(columns)}) VALUES({marks})"], rows)

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        with self._database.lock, self._database.transaction as connection:
            return self._outcomes.write(connection, records)

    def close(self) -> None:
        self._database.close()
