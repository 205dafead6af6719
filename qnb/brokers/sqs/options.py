"""The options of an `sqs:` URL, written like Celery's.

`sqs://` · `sqs://KEY:SECRET@` · `sqs://eu-west-1/` · `sqs://?region=eu-west-1` · `sqs://localhost:4566/` ·
`sqs://?endpoint_url=http://localhost:4566`. Without KEY and SECRET, the usual chain of AWS finds them.

Where: `region`, `endpoint_url`, `is_secure` (https for sqs://HOST/), `profile`, `token` (of a session).
Queues: `prefix` (or `queue_name_prefix`); `predefined_queues=NAME=URL,…` and `queue_url=URL` (only these are used, and
none is made; `NAME-p9` is for priority 9, `NAME-dead` for what is rejected); `mailboxes=no` (no queues for outcomes,
monitoring and control); for those that are made: `message_size`, `retention`, `max_receives` (of the redrive policy; 0
for none), `kms_key`, `tags=KEY=VALUE,…`. `group`: the one message group of FIFO queues, whose order is then kept.
How: `lease` (or `visibility_timeout`), `max_message`, `wait` (of long polls), `connections`, `patience`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from qnb.errors import ConfigurationError
from qnb.settings import Address, parse_url

KNOWN = {
    "region", "endpoint_url", "is_secure", "profile", "lease", "prefix", "queue_name_prefix", "max_message",
    "message_size", "predefined_queues", "queue_url", "kms_key", "tags", "retention", "max_receives", "group",
    "connections", "wait", "patience", "token", "visibility_timeout", "mailboxes",
}  # fmt: skip
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_HOUR = 3600
LONGEST_LEASE = 12 * _HOUR


@dataclass(frozen=True, slots=True)
class Options:
    """What an `sqs:` URL asks for. Sizes in bytes, times in seconds."""

    shown: str  # the URL without its secrets
    region: str | None
    endpoint: str | None
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)
    profile: str | None
    prefix: str
    lease: float | None
    message_size: int  # of the queues that are made here, and what a batch may have
    retention: int
    max_receives: int
    connections: int
    wait: int
    patience: float
    group: str | None  # the message group of all messages of a FIFO queue; None: each its own
    attributes: dict[str, str]
    tags: dict[str, str]
    predefined: dict[str, str]
    mailboxes: bool


def read(url: str) -> Options:
    """Options from a URL; ConfigurationError for what is misspelt or out of bounds."""
    address = parse_url(url)
    options = address.options
    if unknown := options.keys() - KNOWN:
        raise ConfigurationError(
            f"{address} has no option {', '.join(sorted(unknown))}: sqs: takes {', '.join(sorted(KNOWN))}"
        )
    if bool(address.user) != bool(address.password):
        raise ConfigurationError(f"{address} has half a login: sqs://KEY:SECRET@, or none for the usual chain of AWS")
    region, endpoint = _place(address)
    lease = address.number("lease", address.number("visibility_timeout", 0.0)) or None
    if lease is not None and not 0 < lease <= LONGEST_LEASE:
        raise ConfigurationError(f"{address}: a lease on SQS lasts up to 12 hours ({LONGEST_LEASE} seconds)")
    return Options(
        shown=str(address),
        region=region,
        endpoint=endpoint,
        key=address.user,
        secret=address.password,
        token=options.get("token"),
        profile=options.get("profile"),
        prefix=options.get("prefix", options.get("queue_name_prefix", "").rstrip("-")),
        lease=lease,
        message_size=_whole(address, "message_size", 1024 * 1024, 1024, 1024 * 1024),
        retention=_whole(address, "retention", 14 * 24 * _HOUR, 60, 14 * 24 * _HOUR),
        max_receives=_whole(address, "max_receives", 100, 0, 1000),
        connections=_whole(address, "connections", 8, 1, 64),
        wait=_whole(address, "wait", 20, 1, 20),
        patience=address.number("patience", 10.0),
        group=options.get("group"),
        attributes={"KmsMasterKeyId": options["kms_key"]} if options.get("kms_key") else {},
        tags=_pairs(address, "tags"),
        predefined=_predefined(address),
        mailboxes=_yes(options.get("mailboxes", "yes")),
    )


def _place(address: Address) -> tuple[str | None, str | None]:
    """Region and endpoint."""
    region, endpoint = address.options.get("region"), address.options.get("endpoint_url")
    if address.hosts:
        host, port = address.hosts[0]
        if port is None and _REGION.fullmatch(host):
            region = region or host
        elif endpoint is None:
            secure = _yes(address.options.get("is_secure", "yes" if port == 443 or "amazonaws." in host else "no"))
            name = f"[{host}]" if ":" in host else host
            endpoint = f"http{'s' if secure else ''}://{name}{f':{port}' if port else ''}"
    if endpoint is not None and not re.match(r"https?://[^/]", endpoint):
        raise ConfigurationError(f"endpoint_url={endpoint!r} is not a URL like http://localhost:4566")
    return region, endpoint


def _yes(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")


def _whole(address: Address, name: str, default: int, least: int, most: int) -> int:
    value = address.number(name, default)
    if value != int(value) or not least <= value <= most:
        raise ConfigurationError(
            f"{name}={address.options.get(name)} in {address}: a whole number from {least} to {most}"
        )
    return int(value)


def _pairs(address: Address, name: str) -> dict[str, str]:
    """`a=b,c=d`."""
    found = {}
    for part in filter(None, address.options.get(name, "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(f"{name}={address.options[name]!r}: it is written {name}=NAME=VALUE,NAME=VALUE")
        found[key.strip()] = value.strip()
    return found


def _predefined(address: Address) -> dict[str, str]:
    """name → URL of queues that are there already; a URL alone is named by its last part."""
    found = _pairs(address, "predefined_queues")
    for url in filter(None, address.options.get("queue_url", "").split(",")):
        found[url.rstrip("/").rpartition("/")[2]] = url
    for name, url in found.items():
        if not re.match(r"https?://", url):
            raise ConfigurationError(f"predefined queue {name}={url!r}: its URL begins with https://")
    return found
