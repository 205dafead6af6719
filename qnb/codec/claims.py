"""The claim check: what is too large for a message is put into the blob store, and travels as its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from msgspec.structs import replace

from qnb.codec.signing import BLOB, CODE
from qnb.message import Frame

INLINE_CODE = 16384
ROOM_FOR_HEADERS = 4096

Put = Callable[[str, bytes, bytes], None]  # name, purpose it is to be sealed for, content


def lighten(frame: Frame, limit: int | None, put: Put) -> Frame:
    """The frame as it can travel where a message has at most `limit` bytes; `put` gets what stays behind."""
    function, room = frame.function, 0
    if limit is not None:
        room = max(0, limit - ROOM_FOR_HEADERS)
    if function.code is not None:
        if len(function.code) > (INLINE_CODE if limit is None else min(INLINE_CODE, room // 2)):
            put(function.hash.hex(), CODE, function.code)
            frame = replace(frame, function=replace(function, code=None))
        else:
            room -= len(function.code)
    if limit is not None and len(frame.args) > room:
        key = hashlib.sha256(frame.args).hexdigest()[:32]
        put(key, BLOB, frame.args)
        frame = replace(frame, args=b"", blob=key)
    return frame
