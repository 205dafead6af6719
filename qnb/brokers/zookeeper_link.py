"""The connection to ZooKeeper: kazoo's client with patience, batches, and errors that say what to do."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import (
    AuthFailedError,
    BadVersionError,
    ConnectionClosedError,
    ConnectionLoss,
    InvalidACLError,
    KazooException,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    OperationTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.serialization import CheckVersion, Create, Delete, SetData
from kazoo.retry import KazooRetry
from kazoo.security import ACL, CREATOR_ALL_ACL, OPEN_ACL_UNSAFE

from qnb.brokers.base import DEFAULT_LEASE
from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigurationError
from qnb.settings import Address

PORT = 2181
CONNECT_SECONDS = 4.0
PATIENCE = 8.0
_CLOSE_SECONDS = 1.0
# What a server takes by default in one packet (jute.maxbuffer), and what of it is left for more than the data.
PACKET_BYTES = 1_048_575
PACKET_SPARE = 8_192
BATCH_OPERATIONS = 250
# A session shorter than this ends whenever a machine is busy.
SHORTEST_SESSION = 1.0
_OPERATION_BYTES = 64  # of an operation beside its path and data: headers, lengths, ACL
_FAILURES = 2  # of single items, after which a transaction is taken apart
_WINDOW = 16  # batches on their way at once
# A wait looks this often whether the client sleeps on its requests (see _Client).
_NUDGE_SECONDS = 1.0

Operation = Any  # one of kazoo's Create, Delete, SetData, CheckVersion
Pending = Any  # kazoo's IAsyncResult
Start = Callable[[KazooClient], Pending]

LOST = (
    ConnectionLoss,
    ConnectionClosedError,
    SessionExpiredError,
    SessionMovedError,
    OperationTimeoutError,
    KazooTimeoutError,
)
# What an operation may find: an answer, not a failure.
ANSWERS = (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError)
_OPTIONS = frozenset(
    [
        "lease",
        "prefix",
        "max_message",
        "patience",
        "acl",
        "jute_maxbuffer",
        "use_ssl",
        "ca",
        "certfile",
        "keyfile",
        "keyfile_password",
        "verify_certs",
        "check_hostname",
        "expires",
    ]
)
log = logging.getLogger("qnb.brokers.zookeeper")
# kazoo tells each attempt to reconnect, at level WARNING; what matters of it is told in errors.
_quiet = logging.getLogger("qnb.brokers.zookeeper.kazoo")
if _quiet.level == logging.NOTSET:
    _quiet.setLevel(logging.CRITICAL)


class Lost(Exception):
    """The connection broke on the way: whether the server has done it is not known."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and how."""

    address: Address
    root: str  # the path under which everything is
    acl: tuple[ACL, ...]
    packet: int
    patience: float

    @property
    def place(self) -> str:
        """The hosts, for messages."""
        return self.hosts or f"localhost:{PORT}"

    @property
    def hosts(self) -> str:
        """As kazoo wants them."""
        return ",".join(f"{host}:{port or PORT}" for host, port in self.address.hosts) or f"localhost:{PORT}"


def _switch(address: Address, name: str, default: bool) -> bool:
    text = address.options.get(name, "")
    words = {"": default, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ConfigurationError(f"{name}={text!r} in {address} is neither true nor false")
    return words[text.lower()]


def target_of(address: Address, root: str) -> Target:
    """Read the options of the URL."""
    unknown = sorted(set(address.options) - _OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"{address} has the option {unknown[0]!r}, which is none of a zookeeper: URL: "
            f"there are {', '.join(sorted(_OPTIONS))}"
        )
    acl = address.options.get("acl") or ("private" if address.user else "open")
    if acl not in ("private", "open") or (acl == "private" and not address.user):
        raise ConfigurationError(
            f"acl={acl!r} in {address}: 'private' (whoever has the user and password of this URL, which it has to "
            "name) or 'open' (everybody)"
        )
    rights = CREATOR_ALL_ACL if acl == "private" else OPEN_ACL_UNSAFE
    packet = int(address.number("jute_maxbuffer", PACKET_BYTES)) - PACKET_SPARE
    if packet < PACKET_SPARE:
        raise ConfigurationError(f"jute_maxbuffer in {address} is too small: {2 * PACKET_SPARE:,} bytes at least")
    return Target(address, root, tuple(rights), packet, address.number("patience", PATIENCE))


class _Client(KazooClient):  # type: ignore[misc, unused-ignore]
    """Ctrl-C anywhere in a call leaves kazoo in order.

    It queues a request, then sends its thread a byte. With a request that has no byte, each later one waits for the
    next; and an exception of the sending, Ctrl-C too, is taken for a closed connection.
    """

    def _call(self, request: Any, async_object: Any) -> Any:
        wake = self._connection._write_sock
        if self._state in ("AUTH_FAILED", "CLOSED", "EXPIRED_SESSION") or wake is None:
            return super()._call(request, async_object)
        try:
            self._queue.append((request, async_object))
            wake.send(b"\0")
        except OSError:
            async_object.set_exception(ConnectionClosedError("the connection has been closed"))
        except BaseException:
            self.nudge()
            raise
        return None

    def nudge(self) -> None:
        """Have its thread look for requests; one look too many does nothing."""
        wake = self._connection._write_sock
        with suppress(OSError):
            if wake is not None:
                wake.send(b"\0")


class Link:
    """One session of one client. Safe from any thread; it reconnects by itself."""

    def __init__(self, target: Target, session: float = DEFAULT_LEASE) -> None:
        self.target = target
        self.session = max(session, SHORTEST_SESSION)
        self.closed = False
        self.patience = target.patience
        self.negotiated = self.session  # seconds; the server has its own bounds
        self._lost_at: float | None = time.monotonic()
        self._listeners: list[Callable[[], None]] = []
        self._state = threading.Condition()
        self.client = self._make()
        self.client.add_listener(self._changed)
        self._connect()

    def _make(self) -> _Client:
        address = self.target.address
        options = address.options
        login = [("digest", f"{address.user}:{address.password or ''}")] if address.user else None
        client = _Client(
            hosts=self.target.hosts,
            timeout=self.session,
            auth_data=login,
            connection_retry=KazooRetry(max_tries=-1, delay=0.05, backoff=1.5, max_delay=0.5, ignore_expire=True),
            logger=_quiet,
            use_ssl=_switch(address, "use_ssl", False),
            ca=options.get("ca"),
            certfile=options.get("certfile"),
            keyfile=options.get("keyfile"),
            keyfile_password=options.get("keyfile_password"),
            verify_certs=_switch(address, "verify_certs", True),
            check_hostname=_switch(address, "check_hostname", False),
        )
        self._measure(client)
        return client

    def _connect(self) -> None:
        up = self.client.start_async()
        deadline = time.monotonic() + CONNECT_SECONDS
        while not up.wait(0.1):
            if self.client.client_state == "AUTH_FAILED" or time.monotonic() > deadline:
                break
        if not up.is_set():
            failed = self.client.client_state == "AUTH_FAILED"
            self._leave()
            raise self.translate(AuthFailedError()) if failed else self.unavailable()

    def _leave(self) -> None:
        """Stop the client in another thread: it may be waiting for a host that does not answer."""
        self.closed = True
        threading.Thread(target=self._stop, name="qnb-zookeeper-stop", daemon=True).start()

    def _stop(self) -> None:
        with suppress(Exception):  # of a connection that is given up: nobody is left to be told
            self.client.stop()
            self.client.close()

    # ------------------------------------------------------------ state

    def _changed(self, state: str) -> None:
        """Called by kazoo's thread."""
        with self._state:
            if state == "CONNECTED":
                self._lost_at = None
            elif self._lost_at is None:
                self._lost_at = time.monotonic()
            self._state.notify_all()
        for listener in list(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this when the connection comes or goes. It must not block."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        with suppress(ValueError):
            self._listeners.remove(listener)

    @property
    def connected(self) -> bool:
        return bool(self.client.connected)

    @property
    def session_id(self) -> int | None:
        """Changes when the session has expired: its ephemeral nodes are gone then. None while there is none."""
        found = self.client.client_id
        return None if found is None else found[0]

    def _measure(self, client: _Client) -> None:
        """Have kazoo tell what session timeout the server gave; it keeps no note of it."""
        connect = client._connection._connect

        def measured(*arguments: Any) -> tuple[float, float]:
            read_timeout, connect_timeout = connect(*arguments)
            self.negotiated = read_timeout * 1.5 / 1000  # kazoo waits for two thirds of it
            return read_timeout, connect_timeout

        client._connection._connect = measured

    def check_open(self) -> None:
        """Raise when it will never be connected again."""
        if self.closed:
            raise BrokerUnavailable(f"{self.target.address} is closed: open a new one")
        if self.client.client_state == "AUTH_FAILED":
            raise self.translate(AuthFailedError())

    def check(self) -> None:
        """Raise when the connection has been away for longer than there is patience, too."""
        self.check_open()
        since = self._lost_at
        if since is not None and time.monotonic() - since > self.patience:
            raise self.unavailable()

    def unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"no ZooKeeper at {self.target.place} ({self._reason()}): check that it runs, the host and port, "
            "and the firewall between"
        )

    def _reason(self) -> str:
        """Why there is no session, as far as an attempt of its own tells."""
        reason = "no host named"
        for part in self.target.hosts.split(","):
            host, _, port = part.rpartition(":")
            try:
                with socket.create_connection((host, int(port)), timeout=0.5) as connection:
                    if not _switch(self.target.address, "use_ssl", False):
                        return "it takes connections, but gives no session"
                    return self._tls_reason(connection, host)
            except OSError as error:
                reason = error.strerror or str(error)
        return reason

    def _tls_reason(self, connection: socket.socket, host: str) -> str:
        import ssl

        options = self.target.address.options
        try:
            context = ssl.create_default_context(cafile=options.get("ca"))
            context.check_hostname = _switch(self.target.address, "check_hostname", False)
            with context.wrap_socket(connection, server_hostname=host):
                return "it takes connections with TLS, but gives no session"
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is not trusted: {error.verify_message}; name who signed it with ca=FILE"
        except (ssl.SSLError, OSError) as error:
            return f"no TLS on this port: {error}"

    def _await(self, deadline: float) -> None:
        with self._state:
            while not self.connected:
                left = deadline - time.monotonic()
                if left <= 0 or self.closed or self.client.client_state == "AUTH_FAILED":
                    break
                self._state.wait(min(left, 0.5))
        self.check_open()

    # ------------------------------------------------------------ calls

    def attempt(self, starts: Iterable[Start]) -> list[Any]:
        """Send these at once and wait for all: each one's result or its exception of ANSWERS. Raises Lost."""
        return self.finish(self.begin(starts))

    def begin(self, starts: Iterable[Start]) -> list[Pending]:
        """Send these and wait for none; finish() does."""
        return [start(self.client) for start in starts]

    def finish(self, sent: Iterable[Pending]) -> list[Any]:
        try:
            return [self._answer(pending) for pending in sent]
        except LOST as error:
            self.check_open()
            raise Lost(str(error) or type(error).__name__) from error
        except KazooException as error:
            raise self.translate(error) from error

    def _answer(self, pending: Pending) -> Any:
        deadline = time.monotonic() + self.patience
        while not pending.ready():
            left = deadline - time.monotonic()
            if left <= 0:
                raise OperationTimeoutError(f"no answer for {self.patience:.0f} s")
            try:
                return pending.get(timeout=min(left, _NUDGE_SECONDS))
            except KazooTimeoutError:
                self.client.nudge()
            except ANSWERS as error:
                return error
        try:
            return pending.get(block=False)
        except ANSWERS as error:
            return error

    def call_many(self, starts: Sequence[Start], patience: float | None = None) -> list[Any]:
        """As attempt(); what the connection lost is tried again, until patience is at its end."""
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            self._await(deadline)
            if not self.connected:
                raise self.unavailable()
            try:
                return self.attempt(starts)
            except Lost as lost:
                if time.monotonic() >= deadline:
                    raise self.unavailable() from lost
                time.sleep(0.02)

    def call(self, start: Start, patience: float | None = None) -> Any:
        """The result of one, or its exception of ANSWERS."""
        return self.call_many((start,), patience)[0]

    def translate(self, error: KazooException | None, path: str = "") -> BrokerError:
        """An error of the server in words of qnb."""
        where = f"{path or self.target.root} on the ZooKeeper at {self.target.place}"
        user = f"the user {self.target.address.user}" if self.target.address.user else "a client without credentials"
        if isinstance(error, NoAuthError):
            return AccessDenied(
                f"{user} may not use {where}: use the credentials it was made with (zookeeper://user:password@…), "
                "widen its ACL, or choose another path (zookeeper://host/path)"
            )
        if isinstance(error, AuthFailedError):
            return AccessDenied(f"the ZooKeeper at {self.target.place} refused {user}: check user and password")
        if isinstance(error, InvalidACLError):
            return AccessDenied(f"no node can be made for {user} alone: check user and password, or say acl=open")
        return BrokerUnavailable(f"{type(error).__name__} for {where}: {error}")

    # ------------------------------------------------------------ transactions

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequence: bool = False) -> Operation:
        return Create(path, data, self.target.acl, ephemeral | sequence << 1)

    def commit(self, operations: Sequence[Operation]) -> Start:
        """A transaction, to be sent by attempt() or call(): see outcome()."""

        def start(client: KazooClient) -> Pending:
            transaction = client.transaction()
            transaction.operations.extend(operations)
            return transaction.commit_async()

        return start

    def post(self, operations: Sequence[Operation]) -> None:
        """Send a transaction whose end nobody waits for."""
        if self.connected and operations:
            self.commit(operations)(self.client)

    def hurry(self) -> None:
        """It is about to be closed: what is still to be said is not worth a long wait."""
        self.patience = min(self.patience, _CLOSE_SECONDS) if self.connected else 0.0

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._state:
                self._state.notify_all()
            if self.connected:
                self._stop()
            else:
                self._leave()


def children(path: str, watch: Callable[..., None] | None = None) -> Start:
    return lambda client: client.get_children_async(path, watch)


def data_of(path: str) -> Start:
    """Data and stat of a node."""
    return lambda client: client.get_async(path)


def stat_of(path: str, watch: Callable[..., None] | None = None) -> Start:
    """The stat of a node; None when it is not there, and the watch tells when it comes."""
    return lambda client: client.exists_async(path, watch)


def delete(path: str, version: int = -1) -> Operation:
    return Delete(path, version)


def put(path: str, data: bytes, version: int = -1) -> Operation:
    return SetData(path, data, version)


def same(path: str, version: int) -> Operation:
    """Fails when the node has another version."""
    return CheckVersion(path, version)


def failure(results: Sequence[Any]) -> tuple[int, Exception] | None:
    """Which operation of a transaction failed and why; None when it was done."""
    if not any(isinstance(result, Exception) for result in results):
        return None
    for place, result in enumerate(results):
        if isinstance(result, Exception) and not isinstance(result, (RolledBackError, RuntimeInconsistency)):
            return place, result
    return 0, results[0]


def size_of(operation: Operation) -> int:
    """Bytes of it in a packet, at most."""
    return len(operation.path.encode()) + len(getattr(operation, "data", b"")) + _OPERATION_BYTES


def fits(operations: Sequence[Operation], packet: int) -> bool:
    return len(operations) <= BATCH_OPERATIONS and sum(map(size_of, operations)) <= packet


@dataclass(slots=True, eq=False)
class Item:
    """Operations that belong together; `results` when they were done, `error` when they were not."""

    operations: Sequence[Operation]
    results: Sequence[Any] | None = None
    error: Exception | None = None


def chunks(items: Sequence[Item], packet: int) -> list[list[Item]]:
    """Items packed into transactions the server takes."""
    packed: list[list[Item]] = []
    count = size = 0
    for item in items:
        more = sum(map(size_of, item.operations))
        if not packed or count + len(item.operations) > BATCH_OPERATIONS or size + more > packet:
            packed.append([])
            count = size = 0
        packed[-1].append(item)
        count, size = count + len(item.operations), size + more
    return packed


def commit_items(link: Link, items: Sequence[Item], tail: Sequence[Operation] = (), *, once: bool = False) -> None:
    """Do each item whole or not at all, as many at once as go into a transaction.

    `tail` is done along with each transaction, if it can be. With `once`, raises Lost instead of trying again. What
    the server does not do for reasons other than ANSWERS is raised in the end.
    """
    room = link.target.packet - sum(map(size_of, tail))
    waiting = [_Batch(chunk, list(tail)) for chunk in chunks(items, room)]
    send = link.attempt if once else link.call_many
    while waiting:
        now, waiting = waiting[:_WINDOW], waiting[_WINDOW:]
        for batch, results in zip(now, send([link.commit(batch.operations) for batch in now]), strict=True):
            waiting += _sort_out(link, batch, results)
    for item in items:
        if isinstance(item.error, BrokerError):
            raise item.error


@dataclass(slots=True)
class _Batch:
    """A transaction; `failures` counts those before it in which one of its items failed."""

    items: list[Item]
    tail: list[Operation]
    failures: int = 0

    @property
    def operations(self) -> list[Operation]:
        return [*(operation for item in self.items for operation in item.operations), *self.tail]


def _sort_out(link: Link, batch: _Batch, results: Sequence[Any]) -> list[_Batch]:
    """Note what was done; of a transaction that failed, what is to be tried again."""
    failed = failure(results)
    place = 0
    if failed is None:
        for item in batch.items:
            item.results = results[place : place + len(item.operations)]
            place += len(item.operations)
        return []
    at, error = failed
    rest = []
    for item in batch.items:
        if place <= at < place + len(item.operations):
            item.error = (
                error if isinstance(error, ANSWERS) else link.translate(error, item.operations[at - place].path)
            )
        else:
            rest.append(item)
        place += len(item.operations)
    tail = batch.tail if at < place else []
    failures = batch.failures + 1
    # The next one fails at the next item, if there is another: a few cost a try each, and after that each goes alone.
    parts = [rest] if failures <= _FAILURES else [[item] for item in rest]
    return [_Batch(part, tail, failures) for part in parts if part]
