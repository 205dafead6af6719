"""How queues are called on the server: 80 characters of A-Z a-z 0-9 _ -, and `.fifo` at the end.

Other characters are written as the bytes of their UTF-8, each `_xHH`. What qnb adds is told apart by its place:
`NAME-p5` has the messages of priority 5, `NAME-dead` the rejected ones, `qnb-bus-PEER` is a mailbox. A name of the
user that looks like one of these has its dash written `_x2D`.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from qnb.errors import ConfigurationError

LONGEST = 80
FIFO = ".fifo"
DEAD = "-dead"
LEVEL = "-p"
BUS = "qnb-bus-"

_ODD = re.compile(r"[^A-Za-z0-9_-]|_(?=x[0-9A-F]{2})")
_CODE = re.compile(r"((?:_x[0-9A-F]{2})+)")
_TAKEN = re.compile(rf"-(?=(?:dead|p[1-9])$)|(?<=^qnb)-(?={BUS.removeprefix('qnb-')})")


def _code(found: re.Match[str]) -> str:
    return "".join(f"_x{byte:02X}" for byte in found.group().encode())


def escape(name: str) -> str:
    """The name in characters that the server takes."""
    return _ODD.sub(_code, name)


def unescape(text: str) -> str:
    """The name that was escaped."""
    return _CODE.sub(lambda found: bytes.fromhex(found.group().replace("_x", "")).decode(errors="replace"), text)


# In the names of mailboxes two dashes never come from the peer's name.
CUT = "--h"  # before the hash of a name that is too long
ANEW = "--r"  # before two digits: made while the server still remembers its predecessor
_ODD_IN_PEER = re.compile(r"[^A-Za-z0-9-]|(?<=-)-")
_CODE_IN_PEER = re.compile(r"_d|_u|(?:_x[0-9A-F]{2})+")


def escape_peer(peer: str) -> str:
    """The same for peers, whose names are full of dots, shorter; reversible too."""
    return _ODD_IN_PEER.sub(lambda f: {".": "_d", "_": "_u"}.get(f.group()) or _code(f), peer)


def unescape_peer(text: str) -> str:
    """The peer that was escaped."""
    return _CODE_IN_PEER.sub(lambda f: {"_d": ".", "_u": "_"}.get(f.group()) or unescape(f.group()), text)


def is_cut(mailbox: str) -> bool:
    """Whether the name of a mailbox is a part of the peer's, and a hash."""
    return CUT in mailbox


class Names:
    """The names of one place: its `prefix` and a dash come before all of them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{escape(prefix)}-" if prefix else ""

    def queue(self, name: str, level: int = 0) -> str:
        """A queue's name on the server, or that of one of its levels."""
        return _checked(self.prefix, name, f"{LEVEL}{level}" if level else "")

    def dead(self, name: str) -> str:
        """Where the queue's dead letters are."""
        return _checked(self.prefix, name, DEAD)

    def mailbox(self, peer: str) -> str:
        """A peer's mailbox. A name that is too long ends in a hash; see is_cut."""
        text = escape_peer(peer)
        room = LONGEST - len(self.prefix) - len(BUS) - len(ANEW) - 2
        if len(text) > room:
            text = text[: room - 19] + CUT + hashlib.blake2b(peer.encode(), digest_size=8).hexdigest()
        return f"{self.prefix}{BUS}{text}"

    def peer(self, found: str) -> str | None:
        """Whose mailbox it is; None when its name does not tell."""
        text = found.removeprefix(self.prefix + BUS)
        return None if is_cut(text) else unescape_peer(text.partition(ANEW)[0])

    def is_own(self, found: str) -> bool:
        """Whether a queue of the server is one that a user named, in this place."""
        rest = found.removeprefix(self.prefix).removesuffix(FIFO)
        taken = rest.startswith(BUS) or f"-{BUS}" in rest or _TAKEN.search(rest)
        return found.startswith(self.prefix) and not taken

    def read(self, found: str) -> str:
        """The user's name of a queue of the server."""
        return unescape(found.removeprefix(self.prefix).removesuffix(FIFO)) + (FIFO if found.endswith(FIFO) else "")


@lru_cache(1000)
def _checked(prefix: str, name: str, suffix: str) -> str:
    """prefix + name + suffix, with `.fifo` at the end where the name has it."""
    fifo = FIFO if name.endswith(FIFO) else ""
    text = _TAKEN.sub("_x2D", escape(name.removesuffix(FIFO)))
    made = f"{prefix}{text}{suffix}{fifo}"
    if not text or len(made) > LONGEST:
        raise ConfigurationError(
            f"queue name {name!r} becomes {made!r} on SQS, which takes 1 to {LONGEST} characters: choose a shorter one"
        )
    return made
