"""The claim check: what is too large for a message is put into the blob store, and travels as its name."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from qnb.codec.parts import key_of
from qnb.codec.payloads import slice_calls
from qnb.codec.signing import BLOB, CODE
from qnb.errors import PayloadTooLarge
from qnb.message import Frame

INLINE_CODE = 16384
ROOM_FOR_HEADERS = 4096

Put = Callable[[str, bytes, bytes], None]  # name, purpose it is to be sealed for, content


def lighten(frame: Frame, limit: int | None, put: Put | None) -> Frame:
    """The frame as it can travel where a message has at most `limit` bytes; `put` gets what stays behind.

    PayloadTooLarge where there is nowhere to put it.
    """
    function, room = frame.function, 0
    if limit is not None:
        room = max(0, limit - ROOM_FOR_HEADERS)
    if put is None:
        if limit is not None and len(frame.args) + len(function.code or b"") > room:
            raise _too_large(frame, room)
        return frame
    if function.code is not None:
        if len(function.code) > (INLINE_CODE if limit is None else min(INLINE_CODE, room // 2)):
            put(function.hash.hex(), CODE, function.code)
            frame = replace(frame, function=replace(function, code=None))
        else:
            room -= len(function.code)
    if limit is not None and len(frame.args) > room:
        key = key_of(frame.args)
        put(key, BLOB, frame.args)
        frame = replace(frame, args=b"", blob=key)
    return frame


def fits_alone(frame: Frame, limit: int | None) -> bool:
    """Whether there is room beside the function for at least some arguments."""
    return limit is None or len(frame.function.code or b"") < max(0, limit - ROOM_FOR_HEADERS)


def _too_large(frame: Frame, room: int) -> PayloadTooLarge:
    code = len(frame.function.code or b"")
    what, size = "its arguments", len(frame.args)
    if size <= code:
        what, size = "its code, with the globals it uses and the modules that are shipped", code
    return PayloadTooLarge(
        f"a call of {frame.function.name} has {size:,} bytes in {what}, and a message of this broker takes {room:,}: "
        "name a backend that keeps large values, as in Session(broker, backend='sqlite:'), or send the name of a file"
    )


def halves(frame: Frame) -> tuple[Frame, Frame]:
    """A frame of several calls as two."""
    middle = frame.count // 2
    first = replace(frame, count=middle, args=slice_calls(frame.args, 0, middle))
    rest = slice_calls(frame.args, middle, frame.count)
    return first, replace(frame, first=frame.first + middle, count=frame.count - middle, args=rest)
