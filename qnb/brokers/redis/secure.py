"""TLS for a link, and credentials that change. Imported only when a URL needs it.

TLS is the standard library's, with redis-py's option names. Not redis-py's own connection: that one reads the
system's certificates again for each connection (50 ms) and takes 50 µs for each reply of a pipeline, this 2.
"""

from __future__ import annotations

import functools
import importlib
import socket
import ssl

from qnb.brokers.redis.link import Target, is_true
from qnb.errors import ConfigurationError

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
        context.check_hostname = wanted is not ssl.CERT_NONE and is_true(options.get("ssl_check_hostname", "true"))
        context.verify_mode = wanted
        if "ssl_certfile" in options:
            key, password = options.get("ssl_keyfile"), options.get("ssl_password")
            context.load_cert_chain(options["ssl_certfile"], key, password)
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError) as error:  # a file that is not there, or is no certificate
        raise ConfigurationError(f"{target.shown}: {error}; check the ssl_… options and the files they name") from error
    return context


def provided(target: Target) -> tuple[str | None, str | None]:
    """User and password, as the function that the URL names says now: they may change from login to login."""
    module, _, name = (target.credentials or "").partition(":")
    try:
        provider = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "write credentials=module:function, of a module that can be imported here"
        raise ConfigurationError(f"{target.shown}: no function {target.credentials}: {remedy} ({error})") from error
    try:
        found = provider()
    except Exception as error:  # its text may have what nobody is to see
        raise ConnectionError(f"{target.credentials} gave no credentials but {type(error).__name__}") from error
    if isinstance(found, str):
        return None, found
    if isinstance(found, tuple) and len(found) == 2:
        return found
    raise ConfigurationError(f"{target.shown}: {target.credentials} has to return a password, or (user, password)")
