"""What a call shows, as it is kept: the first and the last displays, and how many were left out between them."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec.structs import replace

from qnb.message import Display

# Bytes kept of one call; of one display, half of it.
KEPT = 16 << 20
# Bytes told at once while the call runs, and a second; what is larger comes with the outcome.
LIVE, LIVE_A_SECOND = 256 << 10, 512 << 10
# What a display costs besides its data.
_EACH = 512
_FRESH = 256
# Nobody outside of the lane knows the model that these are views of.
_WIDGET = "application/vnd.jupyter.widget-view+json"
_encode = msgspec.msgpack.Encoder().encode


class Gallery:
    """The displays of a call of any number in bounded memory. Not safe from several threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._half = kept // 2
        self._clear()

    def _clear(self) -> None:
        self.number = 0
        self.fresh: dict[int, None] = {}
        self._head: dict[int, Display] = {}
        self._tail: dict[int, Display] = {}
        self._bytes = [0, 0]
        self._ids: dict[str, int] = {}
        self._dropped = 0
        self._not_before = 0.0

    def show(
        self, data: dict[str, object], metadata: dict[str, object], at: int, id: str = "", update: bool = False
    ) -> None:
        """One more at a place in the text; or, for `update`, in the place of the one that has this id."""
        if update:
            number = self._ids.get(id)
            if number is None:
                return
            before = self._head.get(number) or self._tail[number]
            display = replace(before, data=data, metadata=metadata)
        else:
            number = self.number
            self.number += 1
            display = Display(data, metadata, number, at, id)
        display = self._fitting(display)
        if id:
            self._ids[id] = number
        full = self._bytes[0] + size_of(display) > self._half
        self._put(0 if number in self._head or not (self._tail or update or full) else 1, display)
        self.fresh[number] = None
        if len(self.fresh) > _FRESH:
            del self.fresh[next(iter(self.fresh))]

    def _put(self, part: int, display: Display) -> None:
        kept = (self._head, self._tail)[part]
        before = kept.get(display.number)
        self._bytes[part] += size_of(display) - (size_of(before) if before else 0)
        kept[display.number] = display
        while self._bytes[part] > self._half:  # of the head: one that was replaced by a larger one
            gone = kept.pop(next(iter(kept)))
            self._bytes[part] -= size_of(gone)
            self._dropped += 1
            self.fresh.pop(gone.number, None)
            if self._ids.get(gone.id) == gone.number:
                del self._ids[gone.id]

    def _fitting(self, display: Display) -> Display:
        display = sendable(display)
        return left_out(display, 1, "it is too large") if size_of(display) > self._half else display

    def news(self) -> list[Display]:
        """What was shown or replaced since the last time, as far as it may be told now."""
        now, room, told = time.monotonic(), LIVE, []
        if now < self._not_before:
            return []
        for number in sorted(self.fresh):
            display = self._head.get(number) or self._tail[number]
            size = size_of(display)
            if size <= room:
                room -= size
                told.append(display)
        self.fresh.clear()
        self._not_before = now + (LIVE - room) / LIVE_A_SECOND
        return told

    def take(self, length: int, kept: int) -> list[Display]:
        """All that is kept, and empty the gallery. The call's text had `length` characters, and `kept` of it are."""
        shown = list(self._head.values())
        if self._dropped:
            first = Display({}, {}, len(shown), next(iter(self._tail.values())).at if self._tail else length)
            shown.append(left_out(first, self._dropped, "they are too many"))
        shown += self._tail.values()
        self._clear()
        if length == kept:
            return shown
        # Of the text the beginning and the end are kept.
        return [d if d.at <= kept // 2 else replace(d, at=max(kept // 2, kept - (length - d.at))) for d in shown]


def size_of(display: Display) -> int:
    """Bytes that a display takes, about."""
    return _EACH + sum(
        len(value) if isinstance(value, (str, bytes)) else len(_encode(value)) for value in display.data.values()
    )


def sendable(display: Display) -> Display:
    """The display without what cannot be sent, and without views of widgets."""
    data = {kind: value for kind, value in display.data.items() if kind != _WIDGET}
    return replace(display, data=_sendable(data), metadata=_sendable(display.metadata))


def _sendable(part: dict[str, Any]) -> dict[str, object]:
    try:
        _encode(part)
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError, RecursionError):
        return {str(kind): value for kind, value in part.items() if _can_be_sent(value)}
    return part


def _can_be_sent(value: object) -> bool:
    try:
        _encode(value)
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def left_out(display: Display, count: int, why: str) -> Display:
    """What stands for displays that are not kept, in the place of the first of them."""
    what = "a display is" if count == 1 else f"{count:,} displays are"
    return replace(display, data={"text/plain": f"… {what} left out: {why} …"}, metadata={})
