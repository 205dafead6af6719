"""Links through redis-py: TLS, and asking Sentinel for the master. Imported only when a URL needs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import exceptions
from redis.connection import SSLConnection, parse_url
from redis.sentinel import MasterNotFoundError, Sentinel

from qnb.brokers.redis_link import Command, Link, Reply, ServerError, SocketLink, Target, dial
from qnb.errors import AccessDenied, ConfigurationError

# redis-py cuts the first word off the errors it knows.
_CODES: dict[type[Exception], str] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.BusyLoadingError: "LOADING",
}


def open_secure(target: Target, timeout: float) -> Link:
    """A link by TLS or Sentinel; same errors as open_link."""
    deadline = time.monotonic() + timeout
    host, port = _master(target, timeout / 2) if target.master else target.hosts[0]
    if target.tls is None:
        return SocketLink(dial((host, port), deadline))
    # redis-py reads its own options from a URL: names, types and defaults are those its users know.
    options = parse_url(  # type: ignore[no-untyped-call]
        "rediss://host?" + "&".join(f"{name}={value}" for name, value in target.tls)
    )
    options.pop("connection_class", None)
    options["host"], options["port"] = host, port
    options["socket_connect_timeout"] = options["socket_timeout"] = timeout
    try:
        connection = SSLConnection(**options, protocol=2)
    except (TypeError, exceptions.RedisError) as error:
        raise ConfigurationError(f"{target.shown}: {error}") from error
    link = SecureLink(connection)
    link.connect()
    return link


def _master(target: Target, timeout: float) -> tuple[str, int]:
    user, password = target.sentinel_login
    login = {"username": user, "password": password, "socket_timeout": timeout, "protocol": 2}
    sentinel = Sentinel(list(target.hosts), sentinel_kwargs=login)  # type: ignore[no-untyped-call]
    try:
        host, port = sentinel.discover_master(target.master)  # type: ignore[no-untyped-call]
    except MasterNotFoundError as error:
        raise ConnectionError(str(error)) from error
    except exceptions.AuthenticationError as error:
        raise AccessDenied(
            f"{target.shown}: the sentinel refuses access: give sentinel_password (and sentinel_user) ({error})"
        ) from error
    except exceptions.RedisError as error:
        raise ConnectionError(str(error)) from error
    finally:
        for client in sentinel.sentinels:
            client.close()
    return str(host), int(port)


class SecureLink:
    """The same as SocketLink, over a connection of redis-py."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def connect(self) -> None:
        try:
            self._connection.connect()
        except exceptions.RedisError as error:
            raise _translated(error) from error

    def send(self, commands: Sequence[Command]) -> None:
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        try:
            self._connection.send_packed_command(packed, check_health=False)
        except exceptions.RedisError as error:
            raise _translated(error) from error

    def read_into(self, replies: list[Reply], count: int, timeout: float) -> None:
        for _ in range(count):
            try:
                if not self._connection.can_read(timeout):
                    raise TimeoutError("no reply in time")
                replies.append(self._connection.read_response(disable_decoding=True))
            except exceptions.ResponseError as error:
                replies.append(_refusal(error))
            except exceptions.BusyLoadingError as error:
                replies.append(_refusal(error))
            except exceptions.RedisError as error:
                raise _translated(error) from error

    def close(self) -> None:
        self._connection.disconnect()


def _refusal(error: Exception) -> ServerError:
    code = _CODES.get(type(error))
    return ServerError(f"{code} {error}" if code else str(error))


def _translated(error: Exception) -> OSError | ServerError:
    if isinstance(error, exceptions.AuthenticationError):
        return ServerError(f"WRONGPASS {error}")
    if isinstance(error, exceptions.TimeoutError):
        return TimeoutError(str(error))
    return ConnectionError(str(error))
