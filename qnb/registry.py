"""Scheme → class, by entry points, with "did you mean" and the pip line that brings what is missing."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from qnb.errors import ConfigurationError, MissingLibrary, UnknownScheme
from qnb.settings import ALIASES, parse_url, redact

# What this package brings, looked up first: reading an environment's entry points takes longer than connecting.
BROKERS = {
    "sqlite": "qnb.brokers.sqlite:SqliteBroker",
    "memory": "qnb.brokers.memory:MemoryBroker",
    "redis": "qnb.brokers.redis:RedisBroker",
    "rediss": "qnb.brokers.redis:RedisBroker",
    "redis+sentinel": "qnb.brokers.redis:RedisBroker",
    "redis+socket": "qnb.brokers.redis:RedisBroker",
}
BACKENDS = {
    "sqlite": "qnb.backends.sql:SqlBackend",
    "memory": "qnb.backends.memory:MemoryBackend",
    "redis": "qnb.backends.redis:RedisBackend",
    "rediss": "qnb.backends.redis:RedisBackend",
    "redis+sentinel": "qnb.backends.redis:RedisBackend",
    "redis+socket": "qnb.backends.redis:RedisBackend",
}
# Scheme → extra: the pip line of MissingLibrary.
EXTRAS = {
    "redis": "redis",
    "rediss": "redis",
    "redis+sentinel": "redis",
    "redis+socket": "redis",
}
_OWN = {"qnb.brokers": BROKERS, "qnb.backends": BACKENDS}
_GROUPS = {"broker": "qnb.brokers", "backend": "qnb.backends"}


def schemes(kind: str) -> dict[str, str]:
    """Scheme → "module:Class" of every "broker" or "backend", third parties' too."""
    from importlib.metadata import entry_points

    group = _GROUPS[kind]
    return {entry.name: entry.value for entry in entry_points(group=group)} | _OWN[group]


def find(kind: str, url: str) -> type[Any]:
    """The class for a URL; a backend may also be a dotted path ("package.module:Class")."""
    scheme = parse_url(url).scheme
    target = _OWN[_GROUPS[kind]].get(scheme) or schemes(kind).get(scheme)
    if target is None:
        raise UnknownScheme(_unknown(kind, scheme))
    module, _, name = target.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found
    except ImportError as error:
        library = error.name or str(error)
        if library.split(".")[0] == "qnb":
            raise
        extra = EXTRAS.get(scheme)
        pip = f"pip install 'qnb[{extra}]'" if extra else f"pip install {library}"
        raise MissingLibrary(f"{scheme}: needs the library {library}, which is not installed: {pip}") from error


def _unknown(kind: str, scheme: str) -> str:
    known = sorted(schemes(kind))
    close = difflib.get_close_matches(scheme, [*known, *ALIASES], n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}: ?" if close else ""
    return f"no {kind} has the URL scheme {scheme!r}{hint} Known: {', '.join(s + ':' for s in known)}"


def open_broker(url: str) -> Any:
    """Connect to the broker of a URL."""
    return find("broker", url)(url)


def open_backend(url: str) -> Any:
    """Connect to the backend of a URL."""
    return find("backend", url)(url)


def partner_url(broker_url: str) -> str:
    """The backend that belongs to a broker when none was asked for: itself, where it can keep results."""
    scheme = parse_url(broker_url).scheme
    if scheme in BACKENDS:
        return broker_url
    find("broker", broker_url)  # a misspelt scheme is told as such, and not as one that keeps no results
    raise ConfigurationError(
        f"{redact(broker_url)} keeps no results: name a backend too, as in Session(broker, backend='sqlite:')"
    )
