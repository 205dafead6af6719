"""How the SQL backend reaches its database: the standard library for the embedded file, SQLAlchemy for all others.

SQLAlchemy takes longer to import than an embedded session may take to its first result. Both ways run the same
statements; what dialects say differently stands here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qnb.brokers.sqlite_file import BUSY_SECONDS, PRAGMAS, Database
from qnb.brokers.sqlite_outcomes import OutcomeWriter
from qnb.brokers.sqlite_schema import BACKEND_TABLES, backend_statements, extents_of, round_expiry
from qnb.errors import AccessDenied, BackendUnavailable, ConfigurationError, MissingLibrary, QnbError, StorageFull
from qnb.message import Stored
from qnb.settings import Address

if TYPE_CHECKING:
    import sqlalchemy

CONNECT_SECONDS = 5
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "sqlite": "sqlite+pysqlite"}
_OWN_OPTIONS = ("expires", "prefix", "lease")

Values = Mapping[str, Any]


class Engine(Protocol):
    """What the backend asks of a database."""

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        """The rows of one query."""

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        """Each statement for each of the values, in one transaction."""

    def put(self, table: str, rows: Sequence[Values], *, replace: bool) -> None:
        """Insert rows; one whose key is there already replaces it, or is left out."""

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        """Insert outcomes; those refused."""

    def close(self) -> None:
        """Close what is open."""


class FileEngine:
    """The embedded file, by the standard library."""

    def __init__(self, path: Path, prefix: str, expires: float) -> None:
        self._prefix = prefix
        self._outcomes = OutcomeWriter(prefix, expires)
        self._database = Database(path, backend_statements(prefix), unavailable=BackendUnavailable)

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        return self._database.read(statement, values)

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        with self._database.transaction as connection:
            for statement in statements:
                connection.executemany(statement, values)

    def put(self, table: str, rows: Sequence[Values], *, replace: bool) -> None:
        columns = list(rows[0])
        marks = ", ".join(f":{column}" for column in columns)
        verb = "REPLACE" if replace else "IGNORE"
        self.run([f"INSERT OR {verb} INTO {self._prefix}{table}({', '.join(columns)}) VALUES({marks})"], rows)

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        with self._database.transaction as connection:
            return self._outcomes.write(connection, records)

    def close(self) -> None:
        self._database.close()


class AlchemyEngine:
    """Any database that SQLAlchemy knows and that has the tables' types; tried with PostgreSQL, MySQL and SQLite."""

    def __init__(self, address: Address, prefix: str, expires: float, path: Path | None = None) -> None:
        self._address = address
        self._prefix = prefix
        self._expires = expires
        try:
            import sqlalchemy
        except ImportError as error:
            raise MissingLibrary(f"{address} needs SQLAlchemy: pip install 'qnb[sql]'") from error
        self._sa = sqlalchemy
        self._dialect = address.scheme.partition("+")[0]
        self._engine = self._make_engine(path)
        self._tables = self._describe()
        try:
            self._make_tables()
        except BaseException:
            self._engine.dispose()
            raise

    def _make_engine(self, path: Path | None) -> sqlalchemy.Engine:
        sa = self._sa
        connect: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS}
        try:
            if path is not None:
                url = sa.URL.create(_DRIVERS["sqlite"], database=str(path))
                connect = {"timeout": BUSY_SECONDS}
            else:
                url = sa.make_url(self._address.original).difference_update_query(_OWN_OPTIONS)
                url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
            engine: sqlalchemy.Engine = sa.create_engine(
                url, pool_pre_ping=True, pool_recycle=1800, connect_args=connect
            )
        except ImportError as error:
            pip = f"pip install 'qnb[sql]' or {error.name}"
            raise MissingLibrary(f"{self._address} needs {error.name}, which is not installed: {pip}") from error
        except sa.exc.ArgumentError as error:
            raise ConfigurationError(f"{self._address} is not a database URL that SQLAlchemy understands") from error
        if path is not None:
            sa.event.listen(engine, "connect", _prepare_sqlite)
        return engine

    def _describe(self) -> dict[str, sqlalchemy.Table]:
        sa = self._sa
        metadata = sa.MetaData()
        # MySQL wants a bound for a key, a length for what may be long, and eight bytes for a time.
        kinds: dict[str, Any] = {
            "text": sa.String(191),
            "integer": sa.BigInteger(),
            "real": sa.Double(),
            "blob": sa.LargeBinary(2**32 - 1),
        }
        return {
            name: sa.Table(
                f"{self._prefix}{name}",
                metadata,
                *(
                    sa.Column(column, kinds[kind], primary_key=column in key, nullable=null, autoincrement=False)
                    for column, kind, null in columns
                ),
            )
            for name, (columns, key) in BACKEND_TABLES.items()
        }

    def _make_tables(self) -> None:
        if self._dialect == "sqlite":  # the embedded broker may have made them, or may need them: the same words
            self.run(backend_statements(self._prefix), [{}])
            return
        metadata = next(iter(self._tables.values())).metadata
        for last in (False, True):
            try:
                with self._translated():
                    metadata.create_all(self._engine)
                return
            except QnbError:
                if last:  # else another process made one of them in this moment
                    raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._sa.exc.SQLAlchemyError as error:
            raise self._explain(error) from error

    @contextmanager
    def _begin(self) -> Iterator[sqlalchemy.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    def _explain(self, error: Exception) -> QnbError:
        """The driver's error as one of ours. Only the driver's own words: SQLAlchemy's have the statement's values."""
        cause = getattr(error, "orig", None) or error
        words = " ".join(str(cause).split())
        if self._address.password:
            words = words.replace(self._address.password, "***")
        low = words.lower()
        if any(sign in low for sign in ("no space left", "disk is full", "disk full", "is full", "readonly database")):
            return StorageFull(f"{self._address} cannot store more ({words}): free some space there")
        if any(sign in low for sign in ("authentication failed", "access denied", "permission denied", "no password")):
            return AccessDenied(f"{self._address} refuses: {words}; check user, password and rights")
        return BackendUnavailable(f"{self._address} cannot be used: {words}; check host, port and that it runs")

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        with self._begin() as connection:
            return connection.execute(self._sa.text(statement), values).fetchall()

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        with self._begin() as connection:
            for statement in statements:
                connection.execute(self._sa.text(statement), list(values))

    def _insert(self, table: str, *, replace: bool, where: Any = None) -> Any:
        """An INSERT that leaves out rows whose key is there already, or replaces those (`where` says which)."""
        target = self._tables[table]
        key = [column.name for column in target.primary_key]
        if self._dialect == "mysql":
            from sqlalchemy.dialects import mysql

            changed = mysql.insert(target)
            if not replace:
                return changed.prefix_with("IGNORE")
            return changed.on_duplicate_key_update({c.name: changed.inserted[c.name] for c in target.columns})
        if self._dialect == "sqlite":
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        statement = insert(target)
        if not replace:
            return statement.on_conflict_do_nothing()
        return statement.on_conflict_do_update(
            index_elements=key,
            set_={c.name: statement.excluded[c.name] for c in target.columns if c.name not in key},
            where=where,
        )

    def put(self, table: str, rows: Sequence[Values], *, replace: bool) -> None:
        with self._begin() as connection:
            connection.execute(self._insert(table, replace=replace), list(rows))

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        now = time.time()
        until = round_expiry(now, self._expires)
        extents = [
            {"run": run, "width": width, "expires_at": at} for run, width, at in sorted(extents_of(records, until))
        ]
        unique = {(each.run, each.first): each for each in reversed(records)}
        # In the order of the key, so that two who store the same at once wait for each other instead of deadlocking.
        rows = [
            {"run": run, "first": first, "count": each.count, "expires_at": until, "data": each.data}
            for (run, first), each in sorted(unique.items(), key=lambda item: item[0])
        ]
        with self._begin() as connection:
            connection.execute(self._insert("extents", replace=False), extents)
            new = self._store_new(connection, rows, now)
        refused = []
        for record in records:
            if (record.run, record.first) in new:
                new.remove((record.run, record.first))
            else:
                refused.append(record)
        return refused

    def _store_new(
        self, connection: sqlalchemy.Connection, rows: list[dict[str, Any]], now: float
    ) -> set[tuple[str, int]]:
        """Insert what is new; its keys. What has expired, and is not swept yet, makes way."""
        if self._dialect == "mysql":
            parts = [rows[start : start + 500] for start in range(0, len(rows), 500)]
            return set().union(*(self._store_new_mysql(connection, part, now) for part in parts))
        table = self._tables["outcomes"]
        insert = self._insert("outcomes", replace=True, where=table.c.expires_at <= now)
        added = connection.execute(insert.returning(table.c.run, table.c.first), rows)
        return {(run, first) for run, first in added}

    def _store_new_mysql(
        self, connection: sqlalchemy.Connection, rows: list[dict[str, Any]], now: float
    ) -> set[tuple[str, int]]:
        """The same where no INSERT says which rows it left out."""
        sa, table = self._sa, self._tables["outcomes"]
        ours = {(row["run"], row["first"]): row["data"] for row in rows}
        wanted = sa.tuple_(table.c.run, table.c.first).in_(list(ours))
        connection.execute(sa.delete(table).where(wanted, table.c.expires_at <= now))
        there = {(run, first) for run, first in connection.execute(sa.select(table.c.run, table.c.first).where(wanted))}
        new = [row for row in rows if (row["run"], row["first"]) not in there]
        if new and connection.execute(self._insert("outcomes", replace=False), new).rowcount != len(new):
            # Someone else was quicker with some of them.
            stored = connection.execute(sa.select(table.c.run, table.c.first, table.c.data).where(wanted))
            return {(run, first) for run, first, data in stored if ours[run, first] == data} - there
        return set(ours) - there

    def close(self) -> None:
        self._engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("PRAGMA journal_mode=WAL", *PRAGMAS):
        connection.execute(pragma)
