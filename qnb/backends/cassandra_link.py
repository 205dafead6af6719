"""The connection to Cassandra: from a URL to a session, tables made, statements prepared, errors told in our words."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from cassandra import (
    AlreadyExists,
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    RequestExecutionException,
    RequestValidationException,
    Unauthorized,
    UnsupportedOperation,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, ResultSet, Session
from cassandra.connection import ConnectionException
from cassandra.policies import ConstantReconnectionPolicy, DCAwareRoundRobinPolicy, RetryPolicy, TokenAwarePolicy
from cassandra.protocol import ErrorMessage
from cassandra.query import BatchStatement, SimpleStatement, tuple_factory

from qnb.brokers.sqlite.schema import table_prefix
from qnb.errors import AccessDenied, BackendUnavailable, ConfigurationError, PayloadTooLarge, QnbError
from qnb.settings import Address

# The driver says much, and where nobody has set up logging, Python writes it into the notebook.
logging.getLogger("cassandra").addHandler(logging.NullHandler())

CONNECT_SECONDS = 4.0
REQUEST_SECONDS = 10.0
TRIES = 6
CONCURRENT = 64
_YES = ("1", "true", "yes", "on")

# `place` is the prefix of the URL, so that a new place costs no tables. A run's outcomes lie in some partitions by
# where they start; a large one has its data in `chunks`, as blobs have.
TABLES = {
    "outcomes": "place text, run text, bucket int, first bigint, count bigint, parts int, claim text, data blob, "
    "PRIMARY KEY ((place, run, bucket), first)",
    "widths": "place text, run text, width bigint, PRIMARY KEY ((place, run), width)",
    "chunks": "place text, name text, part int, parts int, data blob, PRIMARY KEY ((place, name), part)",
    "runs": "place text, run text, created_at double, record blob, PRIMARY KEY ((place, run))",
    "history": "place text, created_at double, run text, record blob, PRIMARY KEY ((place), created_at, run)",
    "revocations": "place text, run text, first bigint, count bigint, kept boolean, "
    "PRIMARY KEY ((place), run, first, count)",
}
_ORDERS = {"history": " WITH CLUSTERING ORDER BY (created_at DESC, run ASC)"}


@dataclass(frozen=True)
class Levels:
    """The consistency of reads, writes and of the agreement on who was first."""

    read: int
    write: int
    serial: int


def levels_of(address: Address) -> Levels:
    """`consistency` for both, or `read_consistency` and `write_consistency`, and `serial_consistency`."""
    both = address.options.get("consistency", "LOCAL_QUORUM")
    read = _level(address, "read_consistency", both)
    write = _level(address, "write_consistency", both)
    local = "LOCAL_SERIAL" if both.upper().startswith("LOCAL") else "SERIAL"
    return Levels(read, write, _level(address, "serial_consistency", local))


def _level(address: Address, option: str, default: str) -> int:
    name = address.options.get(option, default).upper()
    level = ConsistencyLevel.name_to_value.get(name)
    if level is None:
        known = ", ".join(ConsistencyLevel.name_to_value)
        raise ConfigurationError(f"{option}={name} in {address} is none of Cassandra's: {known}")
    return int(level)


class _KeepTrying(RetryPolicy):  # type: ignore[misc]
    """Nothing is tried again in the driver: what a timeout leaves open is known to Link.run alone."""

    def on_read_timeout(self, *_: Any, **__: Any) -> tuple[int, None]:
        return self.RETHROW, None

    on_write_timeout = on_unavailable = on_read_timeout


class Link:
    """A session of one keyspace. Safe from any thread; the driver reconnects by itself, once a second."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.levels = levels_of(address)
        self.keyspace = address.path.strip("/") or address.options.get("keyspace") or "qnb"
        table_prefix(self.keyspace)
        prefix = table_prefix(address.options.get("table_prefix"))
        self.names = {table: f"{self.keyspace}.{prefix}{table}" for table in TABLES}
        self._lock = threading.Lock()
        self._prepared: dict[str, Any] = {}
        self._closed = False
        self._cluster, self._session = self._connect()
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ connecting

    def _connect(self) -> tuple[Cluster, Session]:
        asked = self._address.options.get("protocol_version")
        versions: Sequence[int | None] = [int(self._address.number("protocol_version", 0))] if asked else [None, 4, 3]
        for version in versions:
            cluster = self._make_cluster(version)
            try:
                return cluster, cluster.connect()
            except Exception as error:
                cluster.shutdown()
                # A server older than the driver expects says so, not always in the way that the driver would take.
                if "unsupported protocol version" in str(error).lower() and version != versions[-1]:
                    continue
                raise self._explain(error) from error
        raise AssertionError("the last version connects or raises")

    def _make_cluster(self, version: int | None) -> Cluster:
        address, options = self._address, self._address.options
        settings: dict[str, Any] = {} if version is None else {"protocol_version": version}
        if address.user:
            settings["auth_provider"] = PlainTextAuthProvider(address.user, address.password or "")
        bundle = options.get("secure_bundle") or options.get("secure_connect_bundle")
        if bundle:
            settings["cloud"] = {"secure_connect_bundle": bundle}
        else:
            settings["contact_points"] = [(host, port or 9042) for host, port in address.hosts] or [("127.0.0.1", 9042)]
            settings["ssl_context"] = self._ssl_context()
        datacenter = options.get("datacenter")
        balancing = {"local_dc": datacenter} if datacenter else {}
        profile = ExecutionProfile(
            consistency_level=self.levels.read,
            serial_consistency_level=self.levels.serial,
            request_timeout=address.number("timeout", REQUEST_SECONDS),
            retry_policy=_KeepTrying(),
            row_factory=tuple_factory,
            **({} if bundle else {"load_balancing_policy": TokenAwarePolicy(DCAwareRoundRobinPolicy(**balancing))}),
        )
        patience = CONNECT_SECONDS / max(1, len(address.hosts))
        try:
            return Cluster(
                execution_profiles={EXEC_PROFILE_DEFAULT: profile},
                # Else a statement of some segments waits 40 ms for the answer to the first one.
                sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                connect_timeout=patience,
                control_connection_timeout=patience,
                reconnection_policy=ConstantReconnectionPolicy(1.0, None),
                **settings,
            )
        except Exception as error:  # a bundle that cannot be read, a name that no server has
            raise self._explain(error) from error

    def _ssl_context(self) -> ssl.SSLContext | None:
        options = self._address.options
        authority = options.get("ssl_ca") or options.get("ca_certs")
        if not authority and options.get("ssl", "").lower() not in _YES:
            return None
        try:
            context = ssl.create_default_context(cafile=authority)
            context.check_hostname = options.get("ssl_check_hostname", "true").lower() in _YES
            if certificate := options.get("ssl_cert"):
                context.load_cert_chain(certificate, options.get("ssl_key"))
        except OSError as error:
            raise ConfigurationError(f"a certificate named in {self._address} cannot be read: {error}") from error
        return context

    # ------------------------------------------------------------ tables

    def _make_tables(self) -> None:
        """Make what is missing. The rights for it are needed only then."""
        known = self._cluster.metadata.keyspaces.get(self.keyspace)
        missing = [t for t, name in self.names.items() if known is None or name.split(".")[1] not in known.tables]
        if not missing or self._address.options.get("create_tables", "true").lower() not in _YES:
            return
        if known is None:
            self._define(f"CREATE KEYSPACE IF NOT EXISTS {self.keyspace} WITH replication = {self._replication()}")
        for table in missing:
            self._define(f"CREATE TABLE IF NOT EXISTS {self.names[table]} ({TABLES[table]}){_ORDERS.get(table, '')}")

    def _define(self, statement: str) -> None:
        with suppress(AlreadyExists):  # another process was quicker
            self._again(lambda: self._session.execute(SimpleStatement(statement), timeout=30.0))

    def _replication(self) -> dict[str, str | int]:
        """`replication=3` for one datacenter, or `replication=dc1:3,dc2:2`; 1 when nothing is said."""
        asked = self._address.options.get("replication", "1")
        try:
            if ":" in asked:
                pairs = [part.split(":") for part in asked.split(",")]
                return {"class": "NetworkTopologyStrategy", **{name: int(copies) for name, copies in pairs}}
            return {"class": "SimpleStrategy", "replication_factor": int(asked)}
        except ValueError:
            raise ConfigurationError(f"replication={asked} in {self._address} is neither 3 nor dc1:3,dc2:2") from None

    # ------------------------------------------------------------ statements

    def prepare(self, query: str) -> Any:
        """The statement for a query in which {table} stands for a table's name; its consistency as its verb asks."""
        found = self._prepared.get(query)
        if found is None:
            found = self._again(lambda: self._session.prepare(query.format(**self.names)))
            found.consistency_level = self.levels.read if query.startswith("SELECT") else self.levels.write
            found.is_idempotent = True  # those who agree on the first are known by their token
            self._prepared[query] = found
        return found

    def batch(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> BatchStatement:
        """Conditional statements on one partition as one: all or none."""
        made = BatchStatement(consistency_level=self.levels.write, serial_consistency_level=self.levels.serial)
        for query, values in statements:
            made.add(self.prepare(query), values)
        return made

    def rows(self, query: str, values: Sequence[Any], page: int = 5000) -> list[tuple[Any, ...]]:
        """All rows of a query, some thousands a round trip."""
        return self.rows_of(query, [values], page)[0]

    def rows_of(self, query: str, many: Sequence[Sequence[Any]], page: int = 5000) -> list[list[tuple[Any, ...]]]:
        """The rows of a query for each of many values, side by side."""
        prepared = self.prepare(query)
        statements = []
        for values in many:
            bound = prepared.bind(values)
            bound.fetch_size = page
            statements.append(bound)
        return self.all(statements, list)

    def run(self, query: str, many: Sequence[Sequence[Any]]) -> None:
        """One statement for each of many values, side by side."""
        prepared = self.prepare(query)
        self.all([prepared.bind(values) for values in many], lambda _: None)

    def all(self, statements: Sequence[Any], read: Callable[[ResultSet], Any]) -> list[Any]:
        """Execute statements, CONCURRENT at a time, and read the result of each; what timed out is tried again."""
        results: list[Any] = []
        for start in range(0, len(statements), CONCURRENT):
            part = statements[start : start + CONCURRENT]
            for statement, future in zip(part, self._again(partial(self._begin, part)), strict=True):
                results.append(self._again(partial(self._finish, statement, [future], read)))
        return results

    def _begin(self, statements: Sequence[Any]) -> list[Any]:
        return [self._session.execute_async(statement) for statement in statements]

    def _finish(self, statement: Any, begun: list[Any], read: Callable[[ResultSet], Any]) -> Any:
        """The result of what has begun; a further try has to begin it itself."""
        future = begun.pop() if begun else self._session.execute_async(statement)
        return read(future.result())

    def _again(self, work: Callable[[], Any]) -> Any:
        """Try what a busy server may refuse some times: all we ask can be asked twice."""
        if self._closed:
            raise BackendUnavailable(f"{self._address} is closed: open a new one")
        for attempt in range(1, TRIES + 1):
            try:
                return work()
            except RequestExecutionException as error:
                if attempt == TRIES:
                    raise self._explain(error) from error
                time.sleep(random.uniform(0.01, 0.03) * 2**attempt)
            except (DriverException, ErrorMessage, NoHostAvailable, ConnectionException, OSError) as error:
                raise self._explain(error) from error
        raise AssertionError("the last attempt returns or raises")

    # ------------------------------------------------------------ errors and the end

    def _explain(self, error: Exception) -> QnbError:
        if isinstance(error, QnbError):
            return error
        causes = list(error.errors.values()) if isinstance(error, NoHostAvailable) and _is_map(error.errors) else []
        words = " ".join("; ".join(f"{type(e).__name__}: {e}" for e in causes or [error]).split())
        if self._address.password:
            words = words.replace(self._address.password, "***")
        for each in (error, *causes):
            if isinstance(each, AuthenticationFailed) or "AuthenticationFailed" in words or "Bad credentials" in words:
                return AccessDenied(f"{self._address} refuses the user or the password: {words}")
            if isinstance(each, Unauthorized):
                right = "CREATE, or let somebody make the tables, besides SELECT and MODIFY"
                return AccessDenied(f"{self._address} refuses: {words}; the user needs {right} on {self.keyspace}")
        if "too large" in words or "Mutation of" in words:
            return PayloadTooLarge(f"{self._address} refuses the size of a record: {words}")
        if isinstance(error, InvalidRequest | RequestValidationException):
            return ConfigurationError(f"{self._address} does not take a statement: {words}; check keyspace and tables")
        if "unsupported protocol version" in words.lower():
            return ConfigurationError(f"{self._address} speaks another protocol: name it, as in protocol_version=3")
        if isinstance(error, FileNotFoundError | ValueError | TypeError | UnsupportedOperation):
            return ConfigurationError(f"{self._address} cannot be opened: {words}")
        return BackendUnavailable(f"{self._address} cannot be used: {words}; check host, port and that it runs")

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._cluster.shutdown()


def _is_map(errors: Any) -> bool:
    return isinstance(errors, Mapping)
