"""One SQLite file as broker and backend use it: opening, transactions, patience with other writers, clear errors."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qnb.errors import BackendUnavailable, BrokerUnavailable, ConfigurationError, QnbError, StorageFull

BUSY_SECONDS = 30.0
# The log is copied into the file when it has this many pages of 4 KiB: seldom enough not to be felt.
CHECKPOINT_PAGES = 4000
PRAGMAS = (
    "PRAGMA synchronous=NORMAL",
    f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}",
    f"PRAGMA journal_size_limit={CHECKPOINT_PAGES * 4096}",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-16000",
)
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_ELSEWHERE = "name another file: Session('sqlite:////path/to/file.db')"

T = TypeVar("T")
Unavailable = type[BrokerUnavailable] | type[BackendUnavailable]


def _is_busy(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _BUSY


def translate(error: sqlite3.Error, path: Path, unavailable: Unavailable = BrokerUnavailable) -> QnbError:
    """SQLite's error as one of ours, with the file and the remedy."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"the disk of {path} is full: free some space, or {_ELSEWHERE}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return StorageFull(f"cannot write to {path} ({error}): make it and its folder writable, or {_ELSEWHERE}")
    if code == sqlite3.SQLITE_IOERR:
        return StorageFull(f"the disk of {path} fails ({error}): check its space and health, or {_ELSEWHERE}")
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f"{path} is not an SQLite file: remove it if it is not needed, or {_ELSEWHERE}")
    if code == sqlite3.SQLITE_CORRUPT:
        return unavailable(f"{path} is damaged ({error}): move it away, and a new one is made")
    if code in _BUSY:
        return unavailable(
            f"{path} has been locked by another process for {BUSY_SECONDS:.0f} s: look for one that is stopped or hangs"
        )
    return unavailable(f"{path}: {error}")


class Transaction:
    """`with database.lock, database.transaction` to write: alone in this process, and by BEGIN IMMEDIATE among all.

    The lock is taken by the caller's own `with`: there no Ctrl-C can come between taking it and knowing that it is to
    be let go, as it could in here.
    """

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        database = self._database
        connection = database.connection()
        _roll_back(connection)  # what a Ctrl-C has left begun
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            database.patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        except BaseException:  # Ctrl-C: nobody else could write if this stayed begun
            _roll_back(connection)
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        database = self._database
        try:
            connection = database.connection()
            if kind is None:
                try:
                    connection.execute("COMMIT")
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):  # what a full disk refuses is rolled back: there is nothing to try again
                        raise translate(error, database.path, database.unavailable) from error
                    database.patiently(lambda: connection.execute("COMMIT"))
                database.commits += 1
                return
            _roll_back(connection)
            if isinstance(cause, sqlite3.Error):
                raise translate(cause, database.path, database.unavailable) from cause
        except BaseException:
            _roll_back(connection)
            raise


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # a full disk has rolled back already
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


class Database:
    """A connection to the file, shared by the threads of this process."""

    def __init__(self, path: Path, statements: Sequence[str], *, unavailable: Unavailable = BrokerUnavailable) -> None:
        self.path = path
        self.unavailable = unavailable
        self.lock = threading.Lock()
        self.commits = 0  # of this connection: data_version tells of the others' only
        self.transaction = Transaction(self)
        self._connection: sqlite3.Connection | None = None
        self._open(statements)

    def _open(self, statements: Sequence[str]) -> None:
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=200
            )
        except sqlite3.Error as error:
            raise translate(error, self.path, self.unavailable) from error
        try:
            self._use_log(self._connection)
            for pragma in PRAGMAS:
                self.read(pragma)
            marker = statements[-1].partition("EXISTS ")[2].partition("(")[0].strip()
            if not self.read("SELECT 1 FROM sqlite_master WHERE name = ?", (marker,)):
                with self.lock, self.transaction as connection:
                    for statement in statements:
                        connection.execute(statement)
        except BaseException:
            self.close()
            raise

    def _use_log(self, connection: sqlite3.Connection) -> None:
        try:
            mode = self.patiently(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except StorageFull as error:  # the memory that the log shares between processes cannot be had
            code = getattr(error.__cause__, "sqlite_errorcode", None) or 0
            if code & 0xFF != sqlite3.SQLITE_IOERR:
                raise
            mode = str(error.__cause__)
        if mode != "wal":
            raise ConfigurationError(
                f"{self.path} cannot have a write-ahead log ({mode}), as on network file systems: "
                f"name a file on a local disk, as in Session('sqlite:////tmp/qnb.db')"
            )

    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:
            raise self.unavailable(f"{self.path} is closed here: open it anew")
        return self._connection

    def patiently(self, action: Callable[[], T]) -> T:
        """Do it, again and again while other processes have the file locked.

        SQLite's own patience sleeps for milliseconds where the others need microseconds.
        """
        end, pause = time.monotonic() + BUSY_SECONDS, 0.00002
        while True:
            try:
                return action()
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() > end:
                    raise translate(error, self.path, self.unavailable) from error
            time.sleep(pause)
            pause = min(pause * 1.2, 0.005)

    def read(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """The rows of one statement, outside of any transaction."""
        with self.lock:
            connection = self.connection()
            if connection.in_transaction:  # left begun by a Ctrl-C
                _roll_back(connection)
            try:
                return connection.execute(statement, values).fetchall()
            except sqlite3.Error:
                return self.patiently(lambda: connection.execute(statement, values).fetchall())

    def version(self) -> tuple[int, int]:
        """Differs from an earlier one when anyone has written since."""
        return self.read("PRAGMA data_version")[0][0], self.commits

    def close(self) -> None:
        """Close the connection; harmless when it is closed."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
