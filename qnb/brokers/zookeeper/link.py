"""The connection to ZooKeeper: kazoo's client with patience, batches, and errors that say what to do."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.serialization import Create
from kazoo.retry import KazooRetry

from qnb.brokers.base import DEFAULT_LEASE
from qnb.brokers.zookeeper.target import Target, switch
from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable

CONNECT_SECONDS = 4.0
_CLOSE_SECONDS = 1.0
# A session shorter than this ends whenever a machine is busy.
SHORTEST_SESSION = 1.0
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
# kazoo tells each attempt to reconnect, at level WARNING; what matters of it is told in errors.
_quiet = logging.getLogger("qnb.brokers.zookeeper.broker.kazoo")
if _quiet.level == logging.NOTSET:
    _quiet.setLevel(logging.CRITICAL)


class Lost(Exception):
    """The connection broke on the way: whether the server has done it is not known."""


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
            use_ssl=switch(address, "use_ssl", False),
            ca=options.get("ca"),
            certfile=options.get("certfile"),
            keyfile=options.get("keyfile"),
            keyfile_password=options.get("keyfile_password"),
            verify_certs=switch(address, "verify_certs", True),
            check_hostname=switch(address, "check_hostname", False),
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
                    if not switch(self.target.address, "use_ssl", False):
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
            context.check_hostname = switch(self.target.address, "check_hostname", False)
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
