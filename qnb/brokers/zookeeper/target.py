"""What the URL of a ZooKeeper says: where to connect, and how."""

from __future__ import annotations

from dataclasses import dataclass

from kazoo.security import ACL, CREATOR_ALL_ACL, OPEN_ACL_UNSAFE

from qnb.errors import ConfigurationError
from qnb.settings import Address

PORT = 2181
PATIENCE = 8.0
# Kept of each queue, the newest: they are in the memory of the servers.
DEAD_LETTERS = 10_000
# What a server takes by default in one packet (jute.maxbuffer), and what of it is left for more than the data.
PACKET_BYTES = 1_048_575
PACKET_SPARE = 8_192
_OPTIONS = frozenset(
    [
        "dead_letters",
        "lease",
        "prefix",
        "max_message",
        "patience",
        "acl",
        "jute_maxbuffer",
        "use_ssl",
        "ca",
        "certfile",
        "keyfile",
        "keyfile_password",
        "verify_certs",
        "check_hostname",
    ]
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and how."""

    address: Address
    root: str  # the path under which everything is
    acl: tuple[ACL, ...]
    packet: int
    patience: float
    dead_letters: int

    @property
    def place(self) -> str:
        """The hosts, for messages."""
        return self.hosts or f"localhost:{PORT}"

    @property
    def hosts(self) -> str:
        """As kazoo wants them."""
        return ",".join(f"{host}:{port or PORT}" for host, port in self.address.hosts) or f"localhost:{PORT}"


def switch(address: Address, name: str, default: bool) -> bool:
    text = address.options.get(name, "")
    words = {"": default, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ConfigurationError(f"{name}={text!r} in {address} is neither true nor false")
    return words[text.lower()]


def target_of(address: Address, root: str) -> Target:
    """Read the options of the URL."""
    unknown = sorted(set(address.options) - _OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"{address} has the option {unknown[0]!r}, which is none of a zookeeper: URL: "
            f"there are {', '.join(sorted(_OPTIONS))}"
        )
    acl = address.options.get("acl") or ("private" if address.user else "open")
    if acl not in ("private", "open") or (acl == "private" and not address.user):
        raise ConfigurationError(
            f"acl={acl!r} in {address}: 'private' (whoever has the user and password of this URL, which it has to "
            "name) or 'open' (everybody)"
        )
    rights = CREATOR_ALL_ACL if acl == "private" else OPEN_ACL_UNSAFE
    packet = int(address.number("jute_maxbuffer", PACKET_BYTES)) - PACKET_SPARE
    if packet < PACKET_SPARE:
        raise ConfigurationError(f"jute_maxbuffer in {address} is too small: {2 * PACKET_SPARE:,} bytes at least")
    kept = int(address.number("dead_letters", DEAD_LETTERS))
    return Target(address, root, tuple(rights), packet, address.number("patience", PATIENCE), kept)
