"""`keep=True`: a result that stays in the backend, and the handle that is given in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from qnb.backends.base import RESULT_SECONDS
from qnb.codec.references import Referable
from qnb.message import Blob
from qnb.settings import parse_url

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str, int, float]).decode


def describe(task: str, value: Any, size: int) -> bytes:
    """What a lane tells of a result that it keeps."""
    return _encode((task, type(value).__qualname__, size, time.time()))


class Kept(Referable):
    """A result that stays in the backend: `.get()` fetches it; given as an argument it goes to the task by itself.

    `id` is the task's; `type_name` and `nbytes` are of the value, pickled; `until` is Unix time, when the backend may
    forget it.
    """

    __slots__ = ("_backend", "_blob", "_fetch", "id", "nbytes", "type_name", "until")

    def __init__(self, described: bytes, blob: Blob, backend: Any, fetch: Callable[[Blob], Any]) -> None:
        self.id, self.type_name, self.nbytes, at = _decode(described)
        self.until = at + float(parse_url(backend.url).number("expires", RESULT_SECONDS))
        self._blob = blob
        self._backend = backend
        self._fetch = fetch

    def get(self) -> Any:
        """The value, from the backend; MessageError when it is no longer there."""
        return self._fetch(self._blob)

    def reference(self, backend: Any) -> Blob | None:
        """What stands for it in a call; None where another backend would not find it."""
        return self._blob if backend.url == self._backend.url else None

    def value(self) -> Any:
        """The value, for a call that goes elsewhere."""
        return self.get()

    def __repr__(self) -> str:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.until))
        return f"<Kept {self.type_name}, {told_size(self.nbytes)}, of task {self.id}, until {until}>"


def told_size(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
