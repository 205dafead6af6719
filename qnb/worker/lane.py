"""The process in which user code runs. Started with two file descriptors, a socket and a page of shared memory."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from qnb.codec.pickling import refuse_pickles
from qnb.codec.signing import decode
from qnb.worker.bars import watch_imports
from qnb.worker.only import NO_PICKLES
from qnb.worker.protocol import Report, Unpacker, Welcome, Work, pack
from qnb.worker.runner import Mark, Place, Runner
from qnb.worker.shows import take_displays
from qnb.worker.tape import WHOLE, Spill, Tape, Voice, take_console
from qnb.worker.teller import Teller

MARK_BYTES = 24


class Page:
    """Shared memory that tells the worker which call a lane is running, without a message."""

    def __init__(self, descriptor: int) -> None:
        memory = mmap.mmap(descriptor, MARK_BYTES)
        self._numbers = memoryview(memory).cast("q")
        self._times = memoryview(memory).cast("d")

    def write(self, serial: int, index: int, started: float) -> None:
        """The call that starts now."""
        self._times[2] = started
        self._numbers[1] = index
        self._numbers[0] = serial

    def read(self) -> tuple[int, int, float]:
        """Serial of the work, index of the call, Unix time of its start; serial 0 before the first."""
        return self._numbers[0], self._numbers[1], self._times[2]


def main(channel: int, page: int, life: int) -> None:
    """Serve works until the worker closes the channel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_worker, args=(life,), daemon=True).start()
    works = _receive(socket.socket(fileno=channel))
    sock, welcome = next(works)
    assert isinstance(welcome, Welcome)

    sending = threading.Lock()

    def send(report: Report) -> None:
        with sending:
            sock.sendall(pack(report))

    marks = Page(page)
    # Descriptors 1 and 2 are the worker's file for what C code and children print.
    voice = Voice(welcome.worker, marks.read, Tape(Spill(1)))
    take_console(voice.tape)
    watch_imports(whole=True)
    take_displays()
    WHOLE.append(voice)
    serve(welcome, voice, marks.write, send, works)


def serve(
    welcome: Welcome,
    voice: Voice,
    mark: Mark,
    send: Callable[[Report], None],
    works: Iterator[tuple[object, object]],
) -> None:
    """Run one work after the other."""
    if welcome.only:
        refuse_pickles(NO_PICKLES)
    runner = Runner(Place(welcome), mark, send, voice, Teller(lambda: [voice], send))
    for _, work in works:
        assert isinstance(work, Work)
        runner.run(work)


def _receive(sock: socket.socket) -> Iterator[tuple[socket.socket, Welcome | Work]]:
    unpacker, buffer, kind = Unpacker(), bytearray(1 << 20), Welcome
    view = memoryview(buffer)
    while True:
        try:
            length = sock.recv_into(buffer)
        except ConnectionError:
            return
        if not length:
            return
        for body in unpacker.feed(view[:length]):
            yield sock, decode(body, kind)
            kind = Work  # type: ignore[assignment]


def _die_with_worker(life: int) -> None:
    """End with the worker even in the middle of a call: someone else will run it."""
    os.read(life, 1)
    os._exit(1)
