"""A function as bytes: two of the Python version, one that says what follows, and msgpack.

The third byte is `r` for a reference to a function that is imported where it runs, `p` for a pickle; a capital when
modules that it needs lie in the blob store. Nothing here opens a pickle, so that a worker can look at it.
"""

from __future__ import annotations

import re
import sys

import msgspec

from qnb.errors import BadMessage
from qnb.message import UNREADABLE

ANY_PYTHON = (0, 0)
REFERENCE, PICKLE = b"r", b"p"


class Archive(msgspec.Struct, frozen=True, array_like=True):
    """Modules that were shipped: a zip by its content's hash; `data` is None when it lies in the blob store."""

    name: str
    hash: str
    data: bytes | None = None


class Code(msgspec.Struct, frozen=True, array_like=True):
    """What a function is made from where it runs.

    `python` is the minor version it comes from. `packages` has (module, distribution, version) of what it imports.
    `module`, `name` and `is_async` are of a reference, `pickle` is of a function by value.
    """

    python: str
    packages: list[tuple[str, str, str]] = []
    archives: list[Archive] = []
    module: str = ""
    name: str = ""
    is_async: bool = False
    pickle: bytes = b""


_HASH = re.compile("[0-9a-f]{32}")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Code).decode


def python_here() -> str:
    """The minor version of this Python."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def write(made_by: bytes, code: Code) -> bytes:
    """As it travels."""
    kind = PICKLE if code.pickle else REFERENCE
    if any(archive.data is None for archive in code.archives):
        kind = kind.upper()
    return made_by + kind + _encode(code)


def read(data: bytes) -> Code:
    """From what `write` made; BadMessage when it is something else."""
    if data[2:3].lower() not in (REFERENCE, PICKLE):
        raise BadMessage(f"not the code of a function of this version of qnb: {data[:3]!r}")
    try:
        code = _decode(memoryview(data)[3:])
    except UNREADABLE as error:
        raise BadMessage(f"not the code of a function of this version of qnb: {error}") from error
    if not all(_HASH.fullmatch(archive.hash) for archive in code.archives):
        raise BadMessage("it needs modules whose name is no hash")  # and would be that of a folder
    return code


def is_reference(data: bytes | None) -> bool:
    """Whether the function is imported where it runs."""
    return data is not None and data[2:3].lower() == REFERENCE


def has_archives_elsewhere(data: bytes) -> bool:
    """Whether modules that it needs lie in the blob store."""
    return data[2:3].isupper()
