"""From a URL to SQLAlchemy's engine and tables, and from a driver's error to one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qnb.brokers.sqlite.file import BUSY_SECONDS, PRAGMAS
from qnb.brokers.sqlite.schema import BACKEND_TABLES, table_prefix
from qnb.errors import (
    AccessDenied,
    BackendUnavailable,
    ConfigurationError,
    MissingLibrary,
    PayloadTooLarge,
    QnbError,
    StorageFull,
)
from qnb.settings import Address

if TYPE_CHECKING:
    import sqlalchemy

CONNECT_SECONDS = 4  # with all that comes before and after it, less than 5
SILENT_SECONDS = 30
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "sqlite": "sqlite+pysqlite"}
_PATIENCE: dict[str, dict[str, Any]] = {
    "psycopg": {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": SILENT_SECONDS * 1000, "keepalives_idle": 30},
    "psycopg2": {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": SILENT_SECONDS * 1000, "keepalives_idle": 30},
    "pg8000": {"timeout": SILENT_SECONDS},
    "pymysql": {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS},
    "mysqldb": {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS},
    "mysqlconnector": {"connection_timeout": CONNECT_SECONDS},
    "pysqlite": {"timeout": BUSY_SECONDS},
}
_OWN_OPTIONS = ("expires", "prefix", "lease", "schema", "table_prefix", "create_tables")
# What of the query is for SQLAlchemy's create_engine. All else is for the driver.
_ENGINE_OPTIONS = {
    *("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "pool_use_lifo"),
    *("isolation_level", "echo", "echo_pool"),
}
_YES = ("1", "true", "yes", "on")


def table_names(address: Address, prefix: str) -> dict[str, str]:
    """Table → the name it has on the server: of an option like `outcomes_table`, else with the prefix."""
    found = {}
    for table in BACKEND_TABLES:
        own = address.options.get(f"{table}_table")
        found[table] = f"{prefix}{table}" if own is None else table_prefix(own)
    return found


def schema_of(address: Address) -> str | None:
    """The schema (MySQL: the database) that the tables are in; None for the user's own."""
    schema = address.options.get("schema")
    return table_prefix(schema) if schema else None


def may_create(address: Address) -> bool:
    """Whether missing tables are made: yes, unless create_tables=false says that somebody else does."""
    return address.options.get("create_tables", "true").lower() in _YES


def make_engine(sa: Any, address: Address, path: Path | None) -> sqlalchemy.Engine:
    """An engine that connects when it is first used. `path`: of the embedded file."""
    url = _engine_url(sa, address, path)
    options: dict[str, Any] = {name: value for name, value in url.query.items() if name in _ENGINE_OPTIONS}
    for name in options.keys() & {"pool_pre_ping", "pool_use_lifo"}:
        options[name] = options[name].lower() in _YES
    if url.get_backend_name() == "mysql":
        # Its default locks the gaps between rows, and so makes those who store side by side wait for each other.
        options.setdefault("isolation_level", "READ COMMITTED")
    ours = [*_OWN_OPTIONS, *_ENGINE_OPTIONS, *(f"{table}_table" for table in BACKEND_TABLES)]
    url = url.difference_update_query(ours)
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            plain = address.scheme.partition("+")[0]
            raise ConfigurationError(f"{address} names an asynchronous driver: leave it out, as in {plain}://…")
        patience = _PATIENCE.get(dialect.driver, {})
        connect = {name: value for name, value in patience.items() if name not in url.query}
        # Not the statement's values in an error: they are somebody's results.
        defaults = {"pool_pre_ping": True, "pool_recycle": "1800", "hide_parameters": True, **options}
        engine: sqlalchemy.Engine = sa.create_engine(url, connect_args=connect, _coerce_config=True, **defaults)
    except ImportError as error:
        pip = f"pip install 'qnb[sql]' and leave the driver out of the URL, or install {error.name}"
        raise MissingLibrary(f"{address} needs {error.name}, which is not installed: {pip}") from error
    except (sa.exc.ArgumentError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{address} has an option or driver that SQLAlchemy does not know: {error}") from error
    if path is not None:
        sa.event.listen(engine, "connect", _prepare_sqlite)
    if dialect.driver == "pymysql" and "read_timeout" not in url.query:
        sa.event.listen(engine, "do_connect", _greet_mysql)
    return engine


def _engine_url(sa: Any, address: Address, path: Path | None) -> sqlalchemy.URL:
    if path is not None:
        return cast("sqlalchemy.URL", sa.URL.create(_DRIVERS["sqlite"], database=str(path)))
    driver = _DRIVERS.get(address.scheme, address.scheme)
    query: dict[str, Any] = dict(address.options)
    place: dict[str, Any] = {"host": address.hosts[0][0], "port": address.hosts[0][1]} if address.hosts else {}
    if len(address.hosts) > 1:
        if not driver.startswith("postgresql"):
            raise ConfigurationError(f"{address} names several hosts, and MySQL's drivers take one: name the proxy's")
        # In the words of libpq; one that is up and may be written to is looked for.
        place = {}
        query["host"] = ",".join(host for host, _ in address.hosts)
        query["port"] = ",".join(str(port or 5432) for _, port in address.hosts)
        query.setdefault("target_session_attrs", "read-write")
    database = address.path.removeprefix("/") or None
    login = (address.user, address.password)
    return cast("sqlalchemy.URL", sa.URL.create(driver, *login, database=database, query=query, **place))


def make_tables(sa: Any, names: Mapping[str, str], schema: str | None) -> dict[str, sqlalchemy.Table]:
    """The tables as SQLAlchemy knows them."""
    from sqlalchemy.dialects import mysql

    metadata = sa.MetaData(schema=schema)
    # MySQL wants a bound for a key, cuts BLOB at 64 KB and TEXT there too, and holds "a" for "A" unless told otherwise.
    kinds: dict[str, Any] = {
        "text": sa.Text(),
        "key": sa.Text().with_variant(sa.String(191), "mysql"),
        "integer": sa.BigInteger(),
        "real": sa.Double(),
        "blob": sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql"),
    }
    more = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
    tables = {}
    for table, (columns, key) in BACKEND_TABLES.items():
        made = [
            sa.Column(
                name,
                kinds["key" if kind == "text" and name in key else kind],
                primary_key=name in key,
                nullable=null,
                autoincrement=False,
            )
            for name, kind, null in columns
        ]
        tables[table] = sa.Table(names[table], metadata, *made, **more)
        if table != "outcomes":  # which are swept by run
            sa.Index(f"{names[table]}_expires", tables[table].c.expires_at)
    return tables


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("PRAGMA journal_mode=WAL", *PRAGMAS):
        connection.execute(pragma)


def _greet_mysql(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """Its connect_timeout ends with the network's part; a server that then says nothing is no more waited for."""
    connection = dialect.connect(*arguments, **{**options, "read_timeout": CONNECT_SECONDS})
    connection._read_timeout = SILENT_SECONDS
    return connection


# ---------------------------------------------------------------- errors

# By SQLSTATE (PostgreSQL) or number (MySQL).
_TRANSIENT = {"40001", "40P01", "55P03", 1205, 1213, 1020}
_NO_TABLE = {"42P01", 1146}
_DENIED = {"28000", "28P01", "42501", 1044, 1045, 1142, 1143, 1227, 1698}
_NO_DATABASE = {"3D000", "3F000", 1049}
_FULL = {"53100", "25006", 3, 28, 1021, 1030, 1114, 1290, 1792, 1836}
_TOO_LARGE = {"54000", 1153, 1301, 1406}
_TOO_MANY = {"53300", 1040, 1203, 1226}
# A refused connection has words alone in some drivers.
_WORDS = (
    ("full", ("no space left", "disk is full", "disk full", "is full", "readonly database")),
    ("denied", ("authentication failed", "access denied", "permission denied", "no password", "no pg_hba.conf entry")),
    ("many", ("too many clients", "too many connections", "remaining connection slots")),
)
_NO_DATABASE_WORDS = re.compile(r'database "?[^"]*"? does not exist|unknown database', re.IGNORECASE)


def code_of(error: BaseException) -> str | int | None:
    """The SQLSTATE or number in a driver's error."""
    cause = getattr(error, "orig", None) or error
    number = cause.args[0] if cause.args else None
    if isinstance(number, int):  # MySQL's drivers may give a SQLSTATE too, which says less
        return number
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state if isinstance(state, str) else None


def is_transient(error: BaseException) -> bool:
    """Whether the server gave the transaction up in favour of another, and wants it once more."""
    return code_of(error) in _TRANSIENT


def is_without_table(error: BaseException) -> bool:
    """Whether a table is missing."""
    return code_of(error) in _NO_TABLE


def explain(error: Exception, address: Address) -> QnbError:
    """The driver's error as one of ours. Only the driver's own words: SQLAlchemy's have the statement."""
    cause = getattr(error, "orig", None) or error
    code = code_of(error)
    words = " ".join(str(cause.args[1] if isinstance(code, int) and len(cause.args) > 1 else cause).split())
    if address.password:
        words = words.replace(address.password, "***")
    low = words.lower()
    kind = next((name for name, signs in _WORDS if any(sign in low for sign in signs)), None)
    if code in _FULL or kind == "full":
        return StorageFull(f"{address} cannot store more ({words}): free some space there, or make it writable")
    if code in _DENIED or kind == "denied":
        return AccessDenied(f"{address} refuses: {words}; check user, password and rights")
    if code in _NO_DATABASE or _NO_DATABASE_WORDS.search(words):
        return ConfigurationError(f"{address}: {words}; create it, or name one that is there: …/NAME")
    if isinstance(error, TypeError) or "connection option" in low or "uri query parameter" in low:
        return ConfigurationError(f"{address} has an option that the driver does not know: {words}")
    if code in _TOO_LARGE:
        return PayloadTooLarge(f"{address} refuses the size of a record: {words}; store the data elsewhere")
    if code in _TOO_MANY or kind == "many":
        return BackendUnavailable(f"{address} has no connection left: {words}; allow more there, or less by pool_size=")
    if code in _NO_TABLE:
        return ConfigurationError(f"{address} lacks a table: {words}; leave create_tables=false out, or create it")
    if code in _TRANSIENT:
        return BackendUnavailable(f"{address} is too busy with others' changes of the same rows: {words}; try later")
    with suppress(AttributeError):
        if not getattr(cause, "args", None):
            words = type(cause).__name__
    return BackendUnavailable(f"{address} cannot be used: {words}; check host, port and that it runs")
