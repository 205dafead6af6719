"""Where a URL points, and what is said when one cannot get in there."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

import pika
from pika import exceptions

from qnb.brokers.base import DEFAULT_LEASE
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError, QnbError
from qnb.settings import Address

CONNECT_SECONDS = 4.5
OPTIONS = frozenset(
    {"lease", "prefix", "max_message", "dead_letters", "patience", "heartbeat", "queue_type", "consumer_timeout"}
    | {"young"}
)
_TLS_OPTIONS = frozenset(
    {"ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile"}
    | {"ssl_password", "ssl_ciphers"}
)
_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class Target:
    """Hosts in the order in which they are tried, and how to get in."""

    shown: str
    hosts: tuple[tuple[str, int], ...]
    vhost: str
    user: str
    password: str = field(repr=False)
    heartbeat: int
    context: ssl.SSLContext | None = field(repr=False)

    @property
    def place(self) -> str:
        """The hosts as they are told to people."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)

    def parameters(self, host: str, port: int) -> pika.ConnectionParameters:
        """For one of the hosts."""
        seconds = max(1.0, CONNECT_SECONDS / len(self.hosts))
        secure = pika.SSLOptions(self.context, server_hostname=host) if self.context else None
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self.user, self.password),
            heartbeat=self.heartbeat,
            socket_timeout=seconds,
            stack_timeout=seconds,
            connection_attempts=1,
            ssl_options=secure,
            client_properties={"connection_name": "qnb", "product": "qnb"},
        )


def target_of(address: Address) -> Target:
    """The target of an amqp: or amqps: URL; ConfigurationError for options that there are not."""
    known = OPTIONS | _TLS_OPTIONS
    unknown = sorted(set(address.options) - known)
    if unknown:
        raise ConfigurationError(f"{address}: no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    secure = address.scheme == "amqps"
    port = 5671 if secure else 5672
    lease = address.number("lease", DEFAULT_LEASE)
    # The server gives up on a silent client after two of them, which then is about the lease.
    heartbeat = int(address.number("heartbeat", min(60, max(1, round(lease / 2)))))
    return Target(
        shown=str(address),
        hosts=tuple((host, own or port) for host, own in address.hosts) or (("localhost", port),),
        vhost=address.path.removeprefix("/") or "/",
        user=address.user or "guest",
        password=address.password or ("guest" if address.user is None else ""),
        heartbeat=heartbeat,
        context=_context(address) if secure else None,
    )


def _context(address: Address) -> ssl.SSLContext:
    options = address.options
    wanted = _REQUIREMENTS.get(options.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower())
    if wanted is None:
        raise ConfigurationError(f"{address}: ssl_cert_reqs is one of {', '.join(_REQUIREMENTS)}")
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
        check = options.get("ssl_check_hostname", "true").lower() not in ("false", "no", "0", "f", "n", "")
        context.check_hostname = wanted is not ssl.CERT_NONE and check
        context.verify_mode = wanted
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError) as error:  # a file that is not there, or is no certificate
        raise ConfigurationError(f"{address}: {error}; check the ssl_… options and the files they name") from error
    return context


def _all_of(error: BaseException) -> list[BaseException]:
    """The error and all that pika has wrapped in it."""
    found, todo = [], [error]
    while todo:
        one = todo.pop()
        found.append(one)
        inner: list[Any] = [*getattr(one, "exceptions", ()), getattr(one, "exception", None), *one.args]
        todo += [each for each in inner if isinstance(each, BaseException) and each not in found]
    return found


def translate_connecting(error: BaseException, target: Target) -> QnbError:
    """Why there is no connection, in words that name the remedy."""
    parts = _all_of(error)
    place = f"the RabbitMQ at {target.place}"
    said = " ".join(str(part) for part in parts)  # pika wraps some of what the server says as text
    if "(530)" in said and "not found" in said:
        return ConfigurationError(
            f"{place} has no virtual host {target.vhost!r}: name another after the host, as in amqp://host/name, "
            f"or make it: rabbitmqctl add_vhost {target.vhost}"
        )
    if "(530)" in said:
        return AccessDenied(
            f"{place} does not let user {target.user!r} into its virtual host {target.vhost!r}: "
            f"rabbitmqctl set_permissions -p {target.vhost} {target.user} '.*' '.*' '.*'"
        )
    for part in parts:
        if getattr(part, "reply_code", None) == 403 or isinstance(part, exceptions.ProbableAuthenticationError):
            return AccessDenied(
                f"{place} refuses user {target.user!r}: check name and password in the URL, or QNB_BROKER"
                + (" (guest gets in from the server's own machine only)" if target.user == "guest" else "")
            )
        if isinstance(part, ssl.SSLError) or "[SSL: " in str(part):
            reason = str(part).partition("[SSL: ")[2].partition("]")[0] or str(part)
            return BrokerUnavailable(
                f"{place}: no secure connection ({reason}): check the certificates (ssl_ca_certs for the server's, "
                "ssl_certfile and ssl_keyfile for yours), and that this port is the one for amqps:"
            )
    causes = [part for part in parts if isinstance(part, OSError) and part.strerror] or parts[-1:]
    why = getattr(causes[0], "strerror", None) or str(causes[0]) or type(causes[0]).__name__
    return BrokerUnavailable(
        f"cannot reach {place}: {why}; is the server running, and are host and port in the URL right?"
    )
