"""A link to a Redis server: commands out, replies in. The lowest layer of the Redis broker and backend.

It speaks RESP2 through hiredis, Redis' own client library, on a socket of its own: redis-py takes a quarter of a second
to import, more than a whole first task may take. So do TLS (redis_secure), Sentinel and Cluster (redis_route).

What goes wrong on the way is an OSError; what the server refuses is a ServerError among the replies.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from qnb.errors import AccessDenied, ConfigurationError
from qnb.settings import Address

Command = tuple[str | bytes | int, ...]
Reply = Any  # bytes, int, None, a list of them, or a ServerError

CONNECT_SECONDS = 4.0
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
# A server that is up answers within this, even behind a slow script or a fork.
REPLY_SECONDS = 15.0
# Measured: larger reads do not make 1 MiB payloads faster, smaller ones make them slower.
_READ_BYTES = 256 * 1024
# What is larger is not joined into one buffer: copying 1 MiB takes four times as long as sending it.
_JOIN_BYTES = 64 * 1024
_FEW = 16  # commands that are joined without a look at their size
_MOST_PARTS = 512  # in one system call; Linux takes 1024

OPTIONS = frozenset(
    {"lease", "prefix", "expires", "max_message", "dead_letters", "replicas", "patience", "health_check"}
    | {"db", "master", "master_name", "sentinel_user", "sentinel_password", "sentinel_ssl", "credentials"}
)
_SLOTS = 16384


class ServerError(Exception):
    """An error reply. `code` is its first word, as in "WRONGTYPE Operation against …"."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL points and how to get in. Two are equal when they mean the same data."""

    hosts: tuple[tuple[str, int], ...]
    socket_path: str
    db: int
    user: str | None
    password: str | None = field(repr=False)
    master: str | None
    sentinel_login: tuple[str | None, str | None] = field(repr=False)
    sentinel_tls: bool
    slot: int | None  # of a cluster, where all of the place lives
    tls: tuple[tuple[str, str], ...] | None
    credentials: str | None  # module:function that says user and password at each login
    shown: str = field(compare=False)

    @property
    def place(self) -> str:
        """How people name it: host:port or the path of the socket."""
        return self.socket_path or ", ".join(f"{host}:{port}" for host, port in self.hosts)


def target_of(address: Address) -> Target:
    """Read a Redis URL; ConfigurationError when it makes no sense."""
    options, scheme = address.options, address.scheme
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    unknown = sorted(set(options) - OPTIONS - set(tls))
    if unknown:
        raise ConfigurationError(
            f"{address}: no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))} and redis-py's ssl_…"
        )
    on_socket, sentinel, cluster = (scheme.endswith(kind) for kind in ("+socket", "+sentinel", "+cluster"))
    master = options.get("master") or options.get("master_name")  # Celery's
    if on_socket and not address.path:
        raise ConfigurationError(f"{address}: name the socket, as in redis+socket:///run/redis.sock?db=0")
    if sentinel and not master:
        raise ConfigurationError(f"{address}: name the service, as in redis+sentinel://host:26379/0?master=mymaster")
    default = SENTINEL_PORT if sentinel else DEFAULT_PORT
    hosts = () if on_socket else tuple((host, port or default) for host, port in address.hosts)
    return Target(
        hosts=hosts or (() if on_socket else (("localhost", default),)),
        socket_path=address.path if on_socket else "",
        db=_database(address, "" if on_socket else address.path.strip("/")),
        user=address.user,
        password=address.password,
        master=master if sentinel else None,
        sentinel_login=(options.get("sentinel_user"), options.get("sentinel_password")),
        sentinel_tls=is_true(options.get("sentinel_ssl", "no")),
        slot=slot_of(options.get("prefix", "qnb")) if cluster else None,
        tls=tuple(sorted(tls.items())) if scheme.startswith("rediss") or tls else None,
        credentials=options.get("credentials"),
        shown=str(address),
    )


def is_true(text: str) -> bool:
    """How an option says yes."""
    return text.lower() not in ("false", "no", "0", "f", "n", "")


def slot_of(tag: str) -> int:
    """The slot of a cluster where all keys with this hash tag live."""
    return crc_hqx(tag.encode(), 0) % _SLOTS


def _database(address: Address, path: str) -> int:
    text = path or address.options.get("db", "0")
    if not text.isdigit():
        raise ConfigurationError(f"{address}: {text!r} is not a database number, as the 0 in redis://host/0")
    return int(text)


def open_link(target: Target, timeout: float = CONNECT_SECONDS) -> Link:
    """Connect, log in and choose the database. OSError or ServerError when that fails, AccessDenied when refused."""
    deadline = time.monotonic() + timeout
    link: Link | None = None
    try:
        link = Link(_connect(target, deadline))
        _greet(link, target, deadline)
    except BaseException:
        if link is not None:
            link.close()
        if target.slot is not None:
            from qnb.brokers.redis.route import cluster_of

            cluster_of(target).forget()
        raise
    return link


def _connect(target: Target, deadline: float) -> socket.socket:
    if target.socket_path:
        return dial_socket(target.socket_path, deadline)
    host, port = target.hosts[0]
    if target.slot is not None:
        from qnb.brokers.redis.route import cluster_of

        sock, host = cluster_of(target).connect(deadline)
    elif target.master is not None:
        from qnb.brokers.redis.route import find_master

        host, port = find_master(target, time.monotonic() + max(0.5, (deadline - time.monotonic()) / 2))
        sock = dial((host, port), deadline)
    else:
        sock = dial((host, port), deadline)
    if target.tls is None:
        return sock
    from qnb.brokers.redis.secure import secure

    return secure(sock, target, host)


def login_of(target: Target) -> Command | None:
    """The command that logs in, if the URL says who is there."""
    user, password = target.user, target.password
    if target.credentials:
        from qnb.brokers.redis.secure import provided

        user, password = provided(target)
    if password is None:
        return None
    return ("AUTH", user, password) if user else ("AUTH", password)


def _greet(link: Link, target: Target, deadline: float) -> None:
    commands: list[Command] = [("CLIENT", "SETNAME", "qnb"), ("SELECT", target.db)]
    login = login_of(target)
    if login is not None:
        commands.insert(0, login)
    if target.master is not None:
        commands.append(("ROLE",))
    link.send(commands)
    replies: list[Reply] = []
    link.read_into(replies, len(commands), max(0.1, deadline - time.monotonic()))
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ServerError) and command[0] not in ("CLIENT", "ROLE"):
            check_access(reply, target, command[0] == "AUTH")
            if command[0] == "SELECT" and reply.code == "ERR":
                raise ConfigurationError(f"{target.shown}: no database {target.db} on this server ({reply})")
            raise reply
    if target.master is not None and isinstance(replies[-1], list) and replies[-1][0] != b"master":
        raise ConnectionError("the sentinels name a server that is no master yet")


def check_access(error: ServerError, target: Target, at_login: bool = False) -> None:
    """Raise AccessDenied when that is what the error means."""
    if error.code == "NOAUTH":
        remedy = "the server wants a password: redis://:password@host or redis://user:password@host"
    elif error.code == "NOPERM":
        rights = "@stream @hash @sortedset @set @string @scripting, and cluster|slots of a cluster"
        remedy = f"the user lacks a right: qnb needs all of {rights}"
    elif error.code == "DENIED":
        remedy = "protected mode: give the server a password, or bind it to this machine's address"
    elif error.code == "WRONGPASS" or at_login:
        remedy = "check user and password in the URL; special characters are to be percent-encoded"
    else:
        return
    raise AccessDenied(f"{target.shown} refuses access: {remedy} ({error})") from error


def dial_socket(path: str, deadline: float) -> socket.socket:
    """Connect to a Unix socket."""
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix.settimeout(deadline - time.monotonic())
        unix.connect(path)
    except BaseException:
        unix.close()
        raise
    return unix


def dial(place: tuple[str, int], deadline: float) -> socket.socket:
    """Connect to host and port. The deadline is for all addresses of the host together."""
    refused: OSError = TimeoutError(f"no address of {place[0]} answers")
    for family, kind, protocol, _, where in _resolve(*place, deadline):
        tcp = socket.socket(family, kind, protocol)
        try:
            tcp.settimeout(max(0.05, deadline - time.monotonic()))
            tcp.connect(where)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(tcp)
            return tcp
        except OSError as error:
            tcp.close()
            refused = error
        except BaseException:
            tcp.close()
            raise
    raise refused


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    name = host.encode() if host.isascii() else host  # a str brings the codec for names that are not ASCII: 3 ms
    try:
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    # The resolver has no timeout of its own, and a dead name server holds it for half a minute.
    thread = threading.Thread(target=look_up, name="qnb-resolve", daemon=True)
    thread.start()
    thread.join(max(0.05, deadline - time.monotonic()))
    if not found:
        raise TimeoutError(f"the name {host} was not resolved in time")
    if isinstance(found[0], OSError):
        raise found[0]
    addresses: list[Any] = found[0]
    return addresses


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _not_redis(message: str) -> Exception:
    return ConnectionError(f"what answers does not speak Redis' protocol: {message}")


class Link:
    """One connection, used by one thread at a time. The type stub of hiredis knows less than it takes.

    A plain socket is non-blocking and polled here, before a read and after a write that did not go out: with a timeout
    of Python's it is polled before each, and told each timeout, four system calls more for a question and its answer.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = hiredis.Reader(protocolError=_not_redis, replyError=ServerError, notEnoughData=self)
        self._buffer = bytearray(_READ_BYTES)
        self._timeout = 0.0
        self._polled = type(sock) is socket.socket and hasattr(select, "poll")  # not TLS, not Windows
        if self._polled:
            sock.setblocking(False)
            self._readable, self._writable = select.poll(), select.poll()
            self._readable.register(sock, select.POLLIN)
            self._writable.register(sock, select.POLLOUT)

    def send(self, commands: Sequence[Command]) -> None:
        """Write all of them at once."""
        large = [c for c in commands if type(c[-1]) is bytes and len(c[-1]) > _JOIN_BYTES]  # no call for each: it shows
        if not self._polled:
            self._set_timeout(REPLY_SECONDS)
            for part in _parts(commands):
                self._socket.sendall(part)
        elif large or len(commands) > _FEW:
            self._write(_parts(commands))
        else:
            data = b"".join([_pack(command) for command in commands])
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._await_room()
                self._write([data[sent:]])

    def _write(self, parts: Sequence[bytes]) -> None:
        at, sent = 0, 0  # the next part, and how much of it is out
        while True:
            try:
                rest = memoryview(parts[at])[sent:]
                sent += self._socket.sendmsg([rest, *parts[at + 1 : at + _MOST_PARTS]])
            except BlockingIOError:
                pass
            while sent >= len(parts[at]):
                sent -= len(parts[at])
                at += 1
                if at == len(parts):
                    return
            self._await_room()

    def _await_room(self) -> None:
        if not self._writable.poll(REPLY_SECONDS * 1000):
            raise TimeoutError("timed out")

    def read_into(self, replies: list[Reply], count: int, timeout: float) -> None:
        """Append `count` replies; TimeoutError when one takes longer. What was read before an error stays."""
        reader, buffer, sock, polled = self._reader, self._buffer, self._socket, self._polled
        if not polled:
            self._set_timeout(timeout)
        while count:
            reply = reader.gets()
            if reply is self:
                if polled and not self._readable.poll(timeout * 1000):
                    raise TimeoutError("timed out")
                received = sock.recv_into(buffer)
                if not received:
                    raise ConnectionError("the server closed the connection")
                reader.feed(buffer, 0, received)  # type: ignore[arg-type]
            else:
                replies.append(reply)
                count -= 1

    def _set_timeout(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds

    def close(self) -> None:
        self._socket.close()
        # It refers to this link, and the two would keep their buffers until the next full collection.
        self._reader = hiredis.Reader()


def _parts(commands: Sequence[Command]) -> list[bytes]:
    """As they go over the wire. What is large is not copied: getting memory for it takes longer than sending it."""
    parts: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for command in commands:
        if _is_large(command[-1]):
            small.append(b"*%d\r\n" % len(command))
            for argument in command:
                data = argument if type(argument) is bytes else str(argument).encode()
                small.append(b"$%d\r\n" % len(data))
                if _is_large(data):
                    parts += (b"".join(small), data)
                    small, size = [b"\r\n"], 0
                else:
                    small += (data, b"\r\n")
            continue
        piece = _pack(command)
        small.append(piece)
        size += len(piece)
        if size > _JOIN_BYTES:
            parts.append(b"".join(small))
            small, size = [], 0
    return [*parts, b"".join(small)] if small else parts


def _pack(command: Command) -> bytes:
    """Numbers become text here: hiredis asks for their repr, and dies of a Ctrl-C that comes in this moment."""
    for argument in command:
        if type(argument) is int:
            command = tuple([str(each) if type(each) is int else each for each in command])
            break
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def _is_large(argument: str | bytes | int) -> bool:
    return type(argument) is bytes and len(argument) > _JOIN_BYTES
