"""What a message on SQS looks like: text, since SQS takes characters of XML only.

`qnb1|FIELDS|BASE64`. Fields are `key=value` with `;` between: `n` counts earlier deliveries that failed, `d` is when
the message is due (Unix time in milliseconds), and `f=1` says that this is longer than SQS delays, so that consumers
see to it; `l` tells of a level that is new, so that consumers look there first; `b` is a bell: no message, but the
same news.
Anything else on a queue is somebody else's, and is handed on as it is.
"""

from __future__ import annotations

import binascii
import math
from typing import NamedTuple

MARK = "qnb1"
# For the mark and its fields.
HEAD_BYTES = 64


class Body(NamedTuple):
    """A message's text, read.

    `failures`: deliveries before it was sent anew. `due`: Unix time, 0.0 for at once. `level`: one that is new, or 0.
    """

    data: bytes
    failures: int = 0
    due: float = 0.0
    far: bool = False
    level: int = 0
    bell: bool = False


def write(data: bytes, failures: int = 0, due: float = 0.0, far: bool = False, level: int = 0) -> str:
    """The text for these bytes."""
    fields = []
    if failures:
        fields.append(f"n={failures}")
    if due:
        fields.append(f"d={math.ceil(due * 1000)}")
    if far:
        fields.append("f=1")
    if level:
        fields.append(f"l={level}")
    return f"{MARK}|{';'.join(fields)}|{binascii.b2a_base64(data, newline=False).decode()}"


def read(text: str) -> Body:
    """What a text says; a foreign one is bytes as it stands."""
    mark, _, rest = text.partition("|")
    head, bar, coded = rest.partition("|")
    if mark != MARK or not bar:
        return Body(text.encode(errors="surrogatepass"))
    try:
        fields = dict(part.split("=", 1) for part in head.split(";")) if head else {}
        data = binascii.a2b_base64(coded, strict_mode=True) if coded else b""
        failures, due = max(0, int(fields.get("n", 0))), int(fields.get("d", 0)) / 1000
        return Body(data, failures, due, "f" in fields, int(fields.get("l", 0)), "b" in fields)
    except ValueError:  # binascii's error is one, too
        return Body(text.encode(errors="surrogatepass"))


def bell(level: int) -> str:
    """The text that tells of a new level and nothing else."""
    return f"{MARK}|b=1;l={level}|"


def text_bytes(data: bytes) -> int:
    """How long the text for these bytes is at most."""
    return HEAD_BYTES + (len(data) + 2) // 3 * 4


def room(text_limit: int) -> int:
    """How many bytes fit into a message of so many characters."""
    return (text_limit - HEAD_BYTES) // 4 * 3
