"""What the Redis server is and how it is set: too old, forgetful, or given to eviction."""

from __future__ import annotations

import warnings

import msgspec

from qnb.brokers.redis.client import Client
from qnb.brokers.redis.link import ServerError
from qnb.errors import ConfigurationError

OLDEST = (6, 2)


class RedisSettingsWarning(UserWarning):
    """The server is set in a way that may lose tasks."""


class Server(msgspec.Struct, frozen=True):
    """`run_id` tells two servers apart, however they are reached."""

    version: str
    run_id: str


_warned: set[tuple[str, str]] = set()


def check_server(client: Client) -> Server:
    """Look at version and settings; ConfigurationError when too old, warnings once a process and server."""
    information, save = client.run((("INFO",), ("CONFIG", "GET", "save")))
    if isinstance(information, ServerError):
        error = client.translate(information)
        if "NOPERM" not in str(information):
            raise error from information
        return Server("unknown", "")  # may be forbidden; then nothing can be said
    lines = information.decode("utf-8", "replace").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    server = Server(values.get("redis_version", "0"), values.get("run_id", ""))
    if tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise ConfigurationError(
            f"the Redis at {client.target.place} is version {server.version}; qnb needs 6.2 or newer (XAUTOCLAIM)"
        )
    policy = values.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and values.get("maxmemory", "0") != "0":
        _warn(client, "evicts", f"throws keys away when memory is short ({policy}): tasks and results would be lost; "
              "set maxmemory-policy noeviction")  # fmt: skip
    saves = isinstance(save, ServerError) or (len(save) > 1 and save[1] != b"")
    if values.get("aof_enabled") == "0" and not saves:
        _warn(client, "forgets", "keeps nothing on disk: tasks do not survive a restart of this Redis; "
              "set appendonly yes")  # fmt: skip
    return server


def _warn(client: Client, what: str, message: str) -> None:
    place = client.target.place
    if (place, what) not in _warned:
        _warned.add((place, what))
        warnings.warn(f"the Redis at {place} {message}", RedisSettingsWarning, stacklevel=5)
