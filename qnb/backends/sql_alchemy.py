"""The SQL backend's statements through SQLAlchemy: PostgreSQL, MySQL or MariaDB, and the embedded file."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qnb.backends.sql_engine import Values
from qnb.backends.sql_server import (
    explain,
    is_transient,
    is_without_table,
    make_engine,
    make_tables,
    may_create,
    schema_of,
    table_names,
)
from qnb.brokers.sqlite.schema import backend_statements, extents_of, round_expiry
from qnb.errors import MissingLibrary, PayloadTooLarge
from qnb.message import Stored
from qnb.settings import Address

if TYPE_CHECKING:
    import sqlalchemy

# What is stored in one transaction: more would be held by both sides, and lock for longer, and win nothing.
BATCH_RECORDS = 1000
BATCH_BYTES = 16 * 2**20
TRIES = 8

T = TypeVar("T")
Row = dict[str, Any]
Key = tuple[str, int]


class AlchemyEngine:
    """Any database that SQLAlchemy knows and that has an upsert as one of the three here. See Engine."""

    def __init__(self, address: Address, prefix: str, expires: float, path: Path | None = None) -> None:
        self._address = address
        self._prefix = prefix
        self._expires = expires
        try:
            import sqlalchemy
        except ImportError as error:
            raise MissingLibrary(f"{address} needs SQLAlchemy: pip install 'qnb[sql]'") from error
        self._sa = sqlalchemy
        self._engine = make_engine(sqlalchemy, address, path)
        self._dialect = self._engine.dialect.name
        self._tables = make_tables(sqlalchemy, table_names(address, prefix), schema_of(address))
        quote = self._engine.dialect.identifier_preparer.format_table
        self.names: Mapping[str, str] = {name: quote(table) for name, table in self._tables.items()}
        self.record_bytes: int | None = None
        try:
            self._prepare()
        except TypeError as error:  # of connect() of a driver
            self.close()
            raise explain(error, address) from error
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ tables

    def _prepare(self) -> None:
        """Make what is missing. Connecting is done here too, so that a server that is not there is said now."""
        if self._dialect == "sqlite":  # the embedded broker may have made them, or may need them: the same words
            self.run(backend_statements(self._prefix), [{}])
        elif may_create(self._address):
            self._transact(self._make_tables)
        else:
            self.rows("SELECT 1", {})
        if self._dialect == "mysql":
            packet = int(self.rows("SELECT @@max_allowed_packet", {})[0][0])
            self.record_bytes = (packet - 4096) // 2  # bytes travel as hexadecimal digits, or escaped

    def _make_tables(self, connection: sqlalchemy.Connection) -> None:
        sa, table = self._sa, next(iter(self._tables.values()))
        inspector = sa.inspect(connection)
        if all(inspector.has_table(each.name, schema=each.schema) for each in self._tables.values()):
            return
        # One at a time: many workers start at once, and IF NOT EXISTS alone makes one of them fail.
        lock = zlib.crc32(",".join(self.names.values()).encode())
        if self._dialect == "mysql":
            connection.execute(sa.text("SELECT GET_LOCK(:lock, 10)"), {"lock": f"qnb-{lock}"})
        else:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
        try:
            if table.schema and not sa.inspect(connection).has_schema(table.schema):
                connection.execute(sa.schema.CreateSchema(table.schema))
            table.metadata.create_all(connection)
        finally:
            if self._dialect == "mysql":
                connection.execute(sa.text("SELECT RELEASE_LOCK(:lock)"), {"lock": f"qnb-{lock}"})

    # ------------------------------------------------------------ transactions

    def _transact(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """One transaction, again where the server gave it up for another's sake, or where its tables had gone."""
        made = False
        for attempt in range(1, TRIES + 1):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except self._sa.exc.SQLAlchemyError as error:
                if is_without_table(error) and not made and may_create(self._address):
                    made = True
                    self._transact(self._make_tables)
                elif attempt < TRIES and is_transient(error):
                    time.sleep(random.uniform(0.002, 0.005) * 2**attempt)
                else:
                    raise explain(error, self._address) from error
        raise AssertionError("the last attempt returns or raises")

    def rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        return self._transact(lambda connection: connection.execute(self._sa.text(statement), values).fetchall())

    def run(self, statements: Sequence[str], values: Sequence[Values]) -> None:
        def work(connection: sqlalchemy.Connection) -> None:
            for statement in statements:
                connection.execute(self._sa.text(statement), list(values))

        self._transact(work)

    def put(self, table: str, rows: Sequence[Values]) -> None:
        for row in rows:
            self._check_size(row.get("data", b""), f"{table.removesuffix('s')} {row.get('name') or row.get('run')}")
        statement = self._upsert(table)
        self._transact(lambda connection: connection.execute(statement, list(rows)))

    def _upsert(self, table: str, where: Any = None) -> Any:
        """An INSERT that replaces a row with the same key; `where` says which ones, and MySQL cannot be told that."""
        target = self._tables[table]
        key = [column.name for column in target.primary_key]
        other = [column.name for column in target.columns if column.name not in key] or key[:1]
        if self._dialect == "mysql":
            from sqlalchemy.dialects import mysql

            changed = mysql.insert(target)
            return changed.on_duplicate_key_update({name: changed.inserted[name] for name in other})
        if self._dialect == "sqlite":
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        statement = insert(target)
        new = {name: statement.excluded[name] for name in other}
        return statement.on_conflict_do_update(index_elements=key, set_=new, where=where)

    def _keep_extents(self, connection: sqlalchemy.Connection, extents: list[Row]) -> None:
        target = self._tables["extents"]
        if self._dialect == "mysql":
            connection.execute(self._upsert("extents"), extents)
            return
        if self._dialect == "sqlite":
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        connection.execute(insert(target).on_conflict_do_nothing(), extents)

    def _check_size(self, data: bytes, what: str) -> None:
        """PayloadTooLarge for what MySQL would hang up on, which looks like a lost connection."""
        if self.record_bytes is not None and len(data) > self.record_bytes:
            raise PayloadTooLarge(
                f"{what} has {len(data):,} bytes, and {self._address} takes {self.record_bytes:,}: "
                "raise max_allowed_packet there (to twice of what is to be stored), or send the name of a file"
            )

    # ------------------------------------------------------------ outcomes

    def store(self, records: Sequence[Stored]) -> Sequence[Stored]:
        for record in records:
            self._check_size(record.data, f"the outcome of {record.run}:{record.first}")
        now = time.time()
        until = round_expiry(now, self._expires)
        unique = {(each.run, each.first): each for each in reversed(records)}
        # In the order of the key, so that two who store the same at once wait for each other instead of deadlocking.
        ordered = [unique[key] for key in sorted(unique)]
        new: set[Key] = set()
        for part in _parts(ordered):
            extents = [{"run": run, "width": width, "expires_at": at} for run, width, at in extents_of(part, until)]
            extents.sort(key=lambda row: (row["run"], row["width"]))
            rows = [
                {"run": r.run, "first": r.first, "count": r.count, "expires_at": until, "data": r.data} for r in part
            ]
            new |= self._store(extents, rows, now)
        refused = []
        for record in records:
            if (record.run, record.first) in new:
                new.remove((record.run, record.first))
            else:
                refused.append(record)
        return refused

    def _store(self, extents: list[Row], rows: list[Row], now: float) -> set[Key]:
        """Insert what is new; its keys. What has expired, and is not swept yet, makes way."""
        if self._dialect == "mysql":
            everything = set(_keys(rows))
            if self._transact(lambda connection: self._insert_all(connection, extents, rows)):
                return everything
            while (new := self._transact(lambda connection: self._insert_new(connection, extents, rows, now))) is None:
                pass  # each turn someone else has stored one more of them
            return new
        table = self._tables["outcomes"]
        insert = self._upsert("outcomes", table.c.expires_at <= now).returning(table.c.run, table.c.first)

        def work(connection: sqlalchemy.Connection) -> set[Key]:
            self._keep_extents(connection, extents)
            return {(run, first) for run, first in connection.execute(insert, rows)}

        return self._transact(work)

    def _insert_all(self, connection: sqlalchemy.Connection, extents: list[Row], rows: list[Row]) -> bool:
        """All of them or none, for MySQL, where no INSERT says which rows it left out."""
        try:
            self._keep_extents(connection, extents)
            connection.execute(self._tables["outcomes"].insert(), rows)
        except self._sa.exc.IntegrityError:
            connection.rollback()
            return False
        return True

    def _insert_new(
        self, connection: sqlalchemy.Connection, extents: list[Row], rows: list[Row], now: float
    ) -> set[Key] | None:
        """Those that are not there. None when someone else stored one of them in between."""
        sa, table = self._sa, self._tables["outcomes"]
        wanted = sa.tuple_(table.c.run, table.c.first).in_(_keys(rows))
        found = connection.execute(sa.select(table.c.run, table.c.first, table.c.expires_at).where(wanted)).fetchall()
        if any(until <= now for _, _, until in found):
            connection.execute(sa.delete(table).where(wanted, table.c.expires_at <= now))
        there = {(run, first) for run, first, until in found if until > now}
        new = [row for row in rows if (row["run"], row["first"]) not in there]
        if new and not self._insert_all(connection, extents, new):
            return None
        return set(_keys(new))

    def close(self) -> None:
        self._engine.dispose()


def _keys(rows: Sequence[Row]) -> list[Key]:
    return [(row["run"], row["first"]) for row in rows]


def _parts(records: Sequence[Stored]) -> Iterator[list[Stored]]:
    """As many as one transaction is to have."""
    part: list[Stored] = []
    size = 0
    for record in records:
        if part and (len(part) == BATCH_RECORDS or size + len(record.data) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(record)
        size += len(record.data)
    if part:
        yield part
