"""The process in which coroutine functions run, all of them on one event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from time import time
from typing import Any

from qnb.codec.pickling import refuse_pickles
from qnb.codec.signing import decode
from qnb.errors import CannotUnpickle, SoftTimeout, TaskTimeout
from qnb.worker.bars import watch_imports
from qnb.worker.lane import _die_with_worker
from qnb.worker.only import NO_PICKLES
from qnb.worker.protocol import Report, Unpacker, Welcome, Work, pack
from qnb.worker.runner import Place, Record, Runner
from qnb.worker.shows import take_displays
from qnb.worker.tape import VOICE, Tape, Voice, share_console
from qnb.worker.teller import Teller, last_steps


def main(channel: int, page: int, life: int) -> None:
    """Serve works until the worker closes the channel. No page is written: many calls run at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_worker, args=(life,), daemon=True).start()
    asyncio.run(_serve(socket.socket(fileno=channel)))


async def _serve(sock: socket.socket) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    unpacker, lane, calls = Unpacker(), None, set[asyncio.Task[None]]()
    outgoing: asyncio.Queue[Report] = asyncio.Queue()
    share_console()
    watch_imports(whole=True)
    take_displays()
    writer = asyncio.create_task(_write(sock, outgoing))
    writer.add_done_callback(_no_more)
    while data := await loop.sock_recv(sock, 1 << 20):
        for body in unpacker.feed(data):
            if lane is None:
                lane = _Lane(decode(body, Welcome), outgoing.put_nowait, loop)
                continue
            for call in _start(lane, decode(body, Work)):
                calls.add(call)
                call.add_done_callback(calls.discard)
    writer.cancel()


async def _write(sock: socket.socket, outgoing: asyncio.Queue[Report]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        reports = [await outgoing.get()]
        while not outgoing.empty():
            reports.append(outgoing.get_nowait())
        await loop.sock_sendall(sock, b"".join(map(pack, reports)))


def _no_more(writer: asyncio.Task[None]) -> None:
    """Without it nothing would ever be told: better a lane that has died, which the worker replaces."""
    if not writer.cancelled() and writer.exception() is not None:
        os._exit(1)


class _Lane:
    """What the calls of this process share: functions, and who tells what they say."""

    def __init__(self, welcome: Welcome, send: Callable[[Report], None], loop: asyncio.AbstractEventLoop) -> None:
        self.worker = welcome.worker
        self.place = Place(welcome)
        if welcome.only:
            refuse_pickles(NO_PICKLES)
        self.send = send
        self.voices: dict[Voice, None] = {}
        self.teller = Teller(lambda: list(self.voices), lambda report: _send_soon(loop, send, report))
        self.functions = self.runner(Voice(self.worker, lambda: (0, 0, 0.0), Tape()))

    def runner(self, voice: Voice) -> Runner:
        """What a Record needs of a call: all have their own voice."""
        return Runner(self.place, lambda *_: None, self.send, voice, self.teller)


def _send_soon(loop: asyncio.AbstractEventLoop, send: Callable[[Report], None], report: Report) -> None:
    loop.call_soon_threadsafe(send, report)


def _start(lane: _Lane, work: Work) -> list[asyncio.Task[None]]:
    """A task for every call of the work."""
    try:
        function = lane.functions.function(work)
    except CannotUnpickle as error:
        record = Record(lane.functions, work)
        record.fail_all(error)
        record.report(rest=None)
        return []
    if lane.teller.dozing:
        lane.teller.wake()
    opened, calls = lane.place.calls(work)
    return [
        asyncio.create_task(_call(lane, work, work.first + position, function, partial(_open, opened, call)))
        for position, call in enumerate(calls)
    ]


def _open(opened: Callable[[Any], Any] | None, call: Any) -> Any:
    return call if opened is None else opened(call)


async def _call(lane: _Lane, work: Work, index: int, function: Any, call: Callable[[], Any]) -> None:
    single = Work(
        work.serial, work.run, index, 1, work.hash, work.name, None, b"", work.queued_at, work.attempt, work.retries,
        work.soft_timeout, work.timeout, work.keep,
    )  # fmt: skip
    begun = time()
    voice = Voice(lane.worker, lambda: (work.serial, index, begun), Tape(), single)
    VOICE.set(voice)  # in this task's own context
    lane.voices[voice] = None
    runner = lane.runner(voice)
    runner.share(lane.functions)
    record = Record(runner, single)
    try:
        await _run(lane, record, voice, function, call)
    except Exception as error:  # in telling what became of it: whoever waits is told so much
        record = Record(runner, single)
        record.give_up(error)
        record.report(rest=None)
    finally:
        lane.voices.pop(voice, None)
        voice.work = None


async def _run(lane: _Lane, record: Record, voice: Voice, function: Any, call: Callable[[], Any]) -> None:
    """Run a call to its end, and report it."""
    __tracebackhide__ = True
    index = record.work.first
    try:
        args, kwargs = call()
        record.values.append(await _limited(function(*args, **kwargs), record.work))
    except BaseException as error:  # its own CancelledError too: nobody else cancels a call
        record.fail(index, error)
    record.ends.append(time())
    del lane.voices[voice]
    voice.work = None
    if voice.tape.parts:
        record.listen(index)
    if voice.steps is not None and (report := last_steps(voice)) is not None:
        lane.send(report)
    record.report(rest=None)


async def _limited(coroutine: Any, work: Work) -> Any:
    """Await with the work's soft_timeout and timeout; a coroutine that blocks the loop is killed by the worker."""
    __tracebackhide__ = True
    seconds = min(limit for limit in (work.soft_timeout, work.timeout, float("inf")) if limit is not None)
    if seconds == float("inf"):
        return await coroutine
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await coroutine
    except TimeoutError:
        if not timer.expired():
            raise
        kind = SoftTimeout if seconds == work.soft_timeout else TaskTimeout
        raise kind(
            f"the task has run for its {'soft_' if kind is SoftTimeout else ''}timeout of {seconds:g} s"
        ) from None
