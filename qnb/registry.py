"""Scheme → class, by entry points, with "did you mean" and the pip line that brings what is missing."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from qnb.errors import ConfigurationError, MissingLibrary, UnknownScheme
from qnb.settings import ALIASES, parse_url


@dataclass(frozen=True, slots=True)
class _Own:
    """An adapter of this package. `schemes` with spaces between; `extra` is what pip has to install with qnb."""

    schemes: str
    extra: str | None = None
    broker: str | None = None
    backend: str | None = None


_REDIS = "redis rediss redis+sentinel redis+socket redis+cluster rediss+cluster"

# Looked up before the entry points of others: reading an environment's entry points takes longer than connecting.
_ADAPTERS = (
    _Own("sqlite", None, "qnb.brokers.sqlite.broker:SqliteBroker", "qnb.backends.sql:SqlBackend"),
    _Own("memory", None, "qnb.brokers.memory.broker:MemoryBroker", "qnb.backends.memory:MemoryBackend"),
    _Own(_REDIS, "redis", "qnb.brokers.redis.broker:RedisBroker", "qnb.backends.redis:RedisBackend"),
    _Own("amqp amqps", "rabbitmq", "qnb.brokers.rabbitmq.broker:RabbitBroker"),
    _Own("sqs", "sqs", "qnb.brokers.sqs.broker:SqsBroker"),
    _Own("kafka", "kafka", "qnb.brokers.kafka.broker:KafkaBroker"),
    _Own("zookeeper", "zookeeper", "qnb.brokers.zookeeper.broker:ZookeeperBroker"),
    _Own("pubsub", "pubsub", "qnb.brokers.pubsub.broker:PubsubBroker"),
    _Own("rpc", None, backend="qnb.backends.rpc:RpcBackend"),
    _Own("postgresql mysql", "sql", backend="qnb.backends.sql:SqlBackend"),
    _Own("cassandra", "cassandra", backend="qnb.backends.cassandra:CassandraBackend"),
)
# Scheme → "module:Class", and scheme → extra.
BROKERS = {scheme: own.broker for own in _ADAPTERS if own.broker for scheme in own.schemes.split()}
BACKENDS = {scheme: own.backend for own in _ADAPTERS if own.backend for scheme in own.schemes.split()}
EXTRAS = {scheme: own.extra for own in _ADAPTERS if own.extra for scheme in own.schemes.split()}
_OWN = {"qnb.brokers": BROKERS, "qnb.backends": BACKENDS}
_GROUPS = {"broker": "qnb.brokers", "backend": "qnb.backends"}
_DIALECTS = ("postgresql", "mysql", "sqlite")  # SQLAlchemy's URLs may name a driver: postgresql+psycopg:
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(?:[?/].*)?$")


def schemes(kind: str) -> dict[str, str]:
    """Scheme → "module:Class" of every "broker" or "backend", third parties' too."""
    from importlib.metadata import entry_points

    group = _GROUPS[kind]
    return {entry.name: entry.value for entry in entry_points(group=group)} | _OWN[group]


def find(kind: str, url: str) -> type[Any]:
    """The class for a URL, or for a dotted path with options ("package.module:Class?expires=60")."""
    scheme = parse_url(url).scheme
    scheme = scheme.partition("+")[0] if scheme.startswith(_DIALECTS) else scheme
    target = _OWN[_GROUPS[kind]].get(scheme) or schemes(kind).get(scheme)
    if target is None:
        dotted = _DOTTED.match(url)
        if dotted is None:
            raise UnknownScheme(_unknown(kind, scheme))
        target = f"{dotted[1]}:{dotted[2]}"
    module, _, name = target.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found
    except AttributeError as error:
        raise ConfigurationError(f"the module {module} has no class {name}: check the path {target!r}") from error
    except ImportError as error:
        library = error.name or str(error)
        if library.split(".")[0] == "qnb":
            raise
        if f"{module}.".startswith(f"{library}.") and target not in schemes(kind).values():
            raise UnknownScheme(f"{_unknown(kind, scheme)}; nor is there a module {library}") from error
        extra = EXTRAS.get(scheme)
        pip = f"pip install 'qnb[{extra}]'" if extra else f"pip install {library}"
        raise MissingLibrary(f"{scheme}: needs the library {library}, which is not installed: {pip}") from error


def _unknown(kind: str, scheme: str) -> str:
    import difflib

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
    """The backend that belongs to a broker when none was asked for: itself, where it can keep results, else `rpc:`."""
    scheme = parse_url(broker_url).scheme
    if scheme in BACKENDS:
        return broker_url
    find("broker", broker_url)  # a misspelt scheme is told as such
    return broker_url if scheme in schemes("backend") else "rpc:"
