"""Catches what calls print. Nothing is spent on a call that prints nothing, and no lock or system call on a print."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from qnb.codec.displays import Gallery
from qnb.codec.output import Ring, shown, sound
from qnb.message import Display
from qnb.worker.protocol import Work

Steps = tuple[int, int, int | float, int | float | None, str]

# Characters gathered before they are folded into the ring; each piece counts for some more, for its object.
_ROOM = 65536
_PIECE = 8
# Bytes after which a spill is cut back to nothing.
_SPILL_BYTES = 1 << 20
_READ_BYTES = 1 << 17


class Spill:
    """The file that stands for descriptors 1 and 2 of a lane: C code and child processes write to it, by appending.

    A file and not a pipe, because nothing that writes to it can ever have to wait for who reads it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def grown(self) -> bool:
        """Whether there is more than was read."""
        return os.lseek(self._descriptor, 0, os.SEEK_END) != self._read

    def pour(self, ring: Ring) -> None:
        """Move what is new into a ring; of very much only the beginning and the end."""
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        start = self._read if self._read <= size else 0  # less than was read: a child has cut it
        if size - start > 2 * _READ_BYTES:
            ring.add(self._decoder.decode(os.pread(self._descriptor, _READ_BYTES, start)))
            ring.skip(size - start - 2 * _READ_BYTES)
            start = size - _READ_BYTES
        ring.add(self._decoder.decode(os.pread(self._descriptor, size - start, start)))
        self._read = size
        if size > _SPILL_BYTES:
            os.ftruncate(self._descriptor, 0)
            self._read = 0


class Tape:
    """The output of one call after another. `parts` is not empty when the call has printed or shown something.

    `shown` are the displays of the call that was taken last; `after` is done once, when a call has ended.
    """

    def __init__(self, spill: Spill | None = None) -> None:
        self.parts: list[str] = []
        self.spill = spill
        self.shown: list[Display] = []
        self.after: Callable[[], None] | None = None
        self._gallery = Gallery()
        self._room = _ROOM
        self._ring = Ring()
        self._told = 0
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """What `print` calls."""
        self.parts.append("" + text)  # the sum refuses what is no text
        self._room -= len(text) + _PIECE
        if self._room < 0:
            with self._lock:
                self._fold()
        return len(text)

    def _fold(self) -> None:
        parts = self.parts
        taken = parts[:]
        # The list is never empty between two lines here: it tells that the call has printed.
        parts[: len(taken)] = [""]
        self._room = _ROOM
        self._ring.add("".join(taken))

    def show(self, data: dict[str, object], metadata: dict[str, object], id: str = "", update: bool = False) -> None:
        """What `display` calls. `update`: in the place of what has this id."""
        with self._lock:
            self._gather()
            self._gallery.show(data, metadata, self._ring.length, id, update)
        self.parts.append("")  # it is looked at

    def _gather(self) -> None:
        if self.spilled():
            self._pour()
        else:
            self._fold()

    def new_displays(self) -> list[Display]:
        """What was not told yet of what is shown, as far as it may be told now."""
        if not self._gallery.fresh:
            return []
        with self._lock:
            return self._gallery.news()

    def spilled(self) -> bool:
        """Whether C code or a child has written."""
        return self.spill is not None and self.spill.grown()

    def news(self, most: int) -> tuple[int, str]:
        """What was not told yet, of it the last `most` characters: (its position in the output, it)."""
        with self._lock:
            if self.spilled():
                self._pour()
            elif not self.parts:
                return 0, ""
            self._fold()
            offset, text = self._ring.since(max(self._told, self._ring.length - most))
            self._told = self._ring.length
        return offset, sound(text)

    def _pour(self) -> None:
        self._fold()
        assert self.spill is not None
        self.spill.pour(self._ring)

    def take(self) -> str:
        """The output of the call that has ended; the next begins."""
        if self.after is not None:
            after, self.after = self.after, None
            after()
        with self._lock:
            if self.spilled():
                self._pour()
            self._fold()
            length, text = self._ring.length, sound(shown(self._ring.text()))
            self._ring = Ring()
            self._told = 0
            self.shown = self._gallery.take(length, len(text)) if self._gallery.number else []
            del self.parts[:1]  # what fold has left; another thread may have written since
        return text


class _Bytes(io.RawIOBase):
    """The `buffer` of a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = bytes(data)
        self._stream.write(self._decoder.decode(view))
        return len(view)

    def fileno(self) -> int:
        number: int = self._stream.fileno()
        return number


class Console(io.TextIOBase):
    """sys.stdout or sys.stderr of a lane that is a process."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, tape: Tape, descriptor: int) -> None:
        self._descriptor = descriptor
        self.buffer = _Bytes(self)
        self.write = tape.write  # type: ignore[method-assign] # in its place, which saves a call

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write_out(self) -> None:
        """From now on write to the descriptor: this is a fork, whose memory nobody reads."""

        def write(text: str) -> int:
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
            return len(text)

        self.write = write  # type: ignore[method-assign]


def take_console(tape: Tape) -> None:
    """Make the tape hear all that this process prints."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        console = Console(tape, descriptor)
        setattr(sys, name, console)
        os.register_at_fork(after_in_child=console.write_out)


def _tape() -> Tape | None:
    voice = VOICE.get()
    return None if voice is None or voice.work is None else voice.tape


class Shared:
    """sys.stdout or sys.stderr where calls run beside others: what a call prints is its own, all else as it was."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        tape = _tape()
        if tape is not None:
            return tape.write(text)
        written: int = self._stream.write(text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        return self._stream.buffer if _tape() is None else _Bytes(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def share_console() -> None:
    """Have both streams tell calls apart; again, if someone has replaced them meanwhile."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not Shared and stream is not None:
            setattr(sys, name, Shared(stream))


class Voice:
    """What a call says while it runs; a lane that runs one call after the other has one voice for all.

    `where` gives the serial of the work, the index of the call, and the Unix time of its start.
    """

    __slots__ = ("seen", "steps", "tape", "told", "where", "work", "worker")

    def __init__(
        self, worker: str, where: Callable[[], tuple[int, int, float]], tape: Tape, work: Work | None = None
    ) -> None:
        self.worker = worker
        self.where = where
        self.tape = tape
        self.work = work
        self.steps: Steps | None = None  # serial, index, done, total, note: the newest progress
        self.seen = (0, 0)  # what ran when the teller looked last
        self.told: Steps | None = None


# The voice of the call that runs in this thread or in this asyncio task; `WHOLE[0]` is that of a whole process.
VOICE: ContextVar[Voice | None] = ContextVar("qnb_voice", default=None)
WHOLE: list[Voice] = []


def voice_here() -> Voice | None:
    """The voice of the call that runs here; None outside of calls."""
    voice = VOICE.get() or (WHOLE[0] if WHOLE else None)
    return None if voice is None or voice.work is None else voice


def spill_file() -> int:
    """A new, nameless file to append to."""
    import fcntl
    import tempfile

    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("qnb-output")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    return descriptor


def last_of_spill(descriptor: int, most: int = 4096) -> str:
    """The end of what was written to it; for the log, when a lane has died."""
    with contextlib.suppress(OSError):
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return os.pread(descriptor, most, max(0, size - most)).decode(errors="replace")
    return ""
