"""TLS for a link, and asking Sentinel for the master. Imported only when a URL needs it.

TLS is the standard library's, with redis-py's option names. Not redis-py's own connection: that one reads the
system's certificates again for each connection (50 ms) and takes 50 µs for each reply of a pipeline, this 2.
"""

from __future__ import annotations

import functools
import socket
import ssl

from qnb.brokers.redis_link import Target
from qnb.errors import AccessDenied, ConfigurationError

_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_KNOWN = frozenset(
    {"ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile"}
    | {"ssl_password", "ssl_ciphers"}
)


def secure(sock: socket.socket, target: Target, host: str) -> socket.socket:
    """The same socket, with TLS; an ssl.SSLError is an OSError."""
    try:
        return _context(target).wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


@functools.lru_cache(maxsize=16)
def _context(target: Target) -> ssl.SSLContext:
    """Made once for a URL: reading the system's certificates takes longer than all the rest."""
    options = dict(target.tls or ())
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise ConfigurationError(f"{target.shown}: no option {unknown[0]!r}; there are {', '.join(sorted(_KNOWN))}")
    wanted = _REQUIREMENTS.get(options.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower())
    if wanted is None:
        raise ConfigurationError(f"{target.shown}: ssl_cert_reqs is one of {', '.join(_REQUIREMENTS)}")
    files, path = options.get("ssl_ca_certs"), options.get("ssl_ca_path")
    try:
        context = ssl.create_default_context(cafile=files, capath=path)
        context.check_hostname = wanted is not ssl.CERT_NONE and _true(options.get("ssl_check_hostname", "true"))
        context.verify_mode = wanted
        if "ssl_certfile" in options:
            key, password = options.get("ssl_keyfile"), options.get("ssl_password")
            context.load_cert_chain(options["ssl_certfile"], key, password)
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError) as error:  # a file that is not there, or is no certificate
        raise ConfigurationError(f"{target.shown}: {error}; check the ssl_… options and the files they name") from error
    return context


def _true(text: str) -> bool:
    return text.lower() not in ("false", "no", "0", "f", "n", "")


def find_master(target: Target, timeout: float) -> tuple[str, int]:
    """Host and port of the master, as the sentinels say now."""
    from redis import exceptions
    from redis.sentinel import MasterNotFoundError, Sentinel

    user, password = target.sentinel_login
    login = {"username": user, "password": password, "socket_timeout": timeout, "protocol": 2}
    sentinel = Sentinel(list(target.hosts), sentinel_kwargs=login)  # type: ignore[no-untyped-call]
    try:
        host, port = sentinel.discover_master(target.master)  # type: ignore[no-untyped-call]
    except exceptions.AuthenticationError as error:
        hint = "give sentinel_password (and sentinel_user)"
        raise AccessDenied(f"{target.shown}: the sentinel refuses access: {hint} ({error})") from error
    except MasterNotFoundError as error:
        raise ConnectionError(str(error)) from error
    except exceptions.RedisError as error:
        raise ConnectionError(f"sentinel: {error}") from error
    finally:
        for client in sentinel.sentinels:
            client.close()
    return str(host), int(port)
