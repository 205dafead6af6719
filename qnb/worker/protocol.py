"""What a worker and its lanes say to each other over a socket: length-prefixed msgpack. Both ends are of one worker."""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from qnb.message import Blob, Display

# A lane keeps this many functions; its worker knows which, because both forget the oldest for each new one.
FUNCTIONS_KEPT = 500
_LENGTH = struct.Struct("<I")
K = TypeVar("K")
V = TypeVar("V")


def remember(kept: dict[K, V], key: K, value: V, limit: int) -> None:
    """Put a value into a dict that forgets its oldest key rather than grow over the limit."""
    if key not in kept and len(kept) >= limit:
        del kept[next(iter(kept))]
    kept[key] = value


class Work(msgspec.Struct, frozen=True, array_like=True):
    """Calls for a lane to run. `code` comes only with the first work of a function in this lane.

    `values` has what calls refer to: values of other calls, by task id, each by itself (codec/references.py).
    """

    serial: int
    run: str
    first: int
    count: int
    hash: bytes
    name: str
    code: bytes | None
    args: bytes
    queued_at: float
    attempt: int = 1
    retries: int = 0
    soft_timeout: float | None = None
    timeout: float | None = None
    keep: bool = False
    values: dict[str, bytes] = {}


class Said(msgspec.Struct, frozen=True, array_like=True):
    """What a call has said that still runs. `output` stands at `offset` of all that it printed.

    `steps` has (done, total, note) when its progress has changed; `displays` what it has shown or shown anew.
    """

    index: int
    started: float
    output: str = ""
    offset: int = 0
    steps: tuple[int | float, int | float | None, str] | None = None
    displays: list[Display] = []


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What became of calls of one Work: `ran` of them ended, in `seconds` in all.

    `done` has (first, count, states, sealed Outcomes). `again` has (index, message) of calls to be tried again.
    `rest` is the (first, count) that the lane gives back unrun. `said` comes in between, in a report of its own.
    `aside` has what results have put aside, each with the folder that its files are in.
    """

    serial: int
    ran: int
    seconds: float
    done: list[tuple[int, int, bytes, bytes]] = []
    again: list[tuple[int, str]] = []
    rest: tuple[int, int] | None = None
    said: Said | None = None
    aside: list[tuple[str, Blob]] = []


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The first thing a lane is told: the signing key, which may stand on no command line, and its worker's name.

    `folder` is where files of what was put aside are; None where the backend has no blob store.
    """

    key: bytes
    worker: str
    folder: str | None = None
    only: tuple[str, ...] = ()  # modules whose functions alone are run, and no pickle is opened

    def __repr__(self) -> str:  # a repr may be printed or logged, and the key is a secret
        return f"<Welcome to worker {self.worker}>"


_encode = msgspec.msgpack.Encoder().encode


def pack(message: msgspec.Struct) -> bytes:
    """A message with its length in front."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The bodies that are complete now."""
        buffer = self._buffer
        buffer += data
        bodies, start = [], 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start - 4 < length:
                break
            bodies.append(bytes(buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        if start:
            del buffer[:start]
        return bodies
