"""What a call prints, as it is kept: its beginning and its end, and how much was left out between them."""

from __future__ import annotations

import re

from qnb.message import Display

# Characters kept of one call.
KEPT = 65536
# Displays of a call that runs, at most 256 KiB each.
_DISPLAYS_HEARD = 64
# What a terminal would have overwritten: a bar that went back to the start of its line.
_OVERWRITTEN = re.compile(r"[^\n\r]*\r+(?=[^\r\n])")


def sound(text: str) -> str:
    """The text with what cannot be sent written out: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


class Ring:
    """A text of any length in bounded memory: its head and its tail, half of `kept` characters each."""

    __slots__ = ("_half", "_head", "_tail", "length")

    def __init__(self, kept: int = KEPT) -> None:
        self._half = max(1, kept // 2)
        self._head = self._tail = ""
        self.length = 0

    def add(self, text: str) -> None:
        """More text at the end."""
        whole = self.length == len(self._head)
        self.length += len(text)
        if whole and (room := self._half - len(self._head)):
            self._head += text[:room]
            text = text[room:]
        if text:
            self._tail = text[-self._half :] if len(text) >= self._half else (self._tail + text)[-self._half :]

    def skip(self, length: int) -> None:
        """So many characters of which nothing is known."""
        self.length += length

    @property
    def dropped(self) -> int:
        """How many characters are not kept."""
        return self.length - len(self._head) - len(self._tail)

    def since(self, position: int) -> tuple[int, str]:
        """The text from a position on, as far as it is kept: (where what is given begins, it)."""
        start = self.length - len(self._tail)
        if self.dropped or position >= start:
            position = max(position, start)
            return position, self._tail[position - start :]
        return position, (self._head + self._tail)[position:]

    def text(self) -> str:
        """All that is kept, with a line that says what is not."""
        dropped = self.dropped
        if not dropped:
            return self._head + self._tail
        head, tail = self._head, self._tail
        cut = head.rfind("\n") + 1
        if cut:
            dropped += len(head) - cut
            head = head[:cut]
        cut = tail.find("\n") + 1
        if 0 < cut < len(tail):
            dropped += cut
            tail = tail[cut:]
        gap = "" if not head or head.endswith("\n") else "\n"
        return f"{head}{gap}… {dropped:,} characters left out …\n{tail}"


class Heard:
    """What a session has heard of the output of a call that still runs."""

    __slots__ = ("_ring", "attempt", "displays")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.displays: dict[int, Display] = {}
        self._ring = Ring()

    def add(self, offset: int, text: str) -> None:
        """A piece of the output, by its position; what was heard already is not taken again."""
        ring = self._ring
        if (gap := offset - ring.length) > 2:
            ring.skip(gap - 2)
            ring.add("…\n")
        ring.add(text[max(0, ring.length - offset) :])

    def show(self, displays: list[Display]) -> None:
        """More displays, or others in the place of those that were heard; of very many the last."""
        for display in displays:
            self.displays[display.number] = display
        while len(self.displays) > _DISPLAYS_HEARD:
            del self.displays[min(self.displays)]

    def since(self, position: int) -> tuple[int, str]:
        """As Ring.since."""
        return self._ring.since(position)

    def text(self) -> str:
        """All that was heard and is kept."""
        return shown(self._ring.text())


def shown(text: str) -> str:
    """The text as a terminal would show it: of a line written over and over only its last state."""
    return _OVERWRITTEN.sub("", text) if "\r" in text else text


def last_line(text: str) -> str:
    """The last line that has something on it."""
    return text[-2000:].rstrip().rpartition("\n")[2].rpartition("\r")[2]
