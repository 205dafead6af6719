"""The process in which coroutine functions run, all of them on one event loop."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from time import time
from typing import Any

from qnb.codec.payloads import decode_calls
from qnb.codec.pickling import loads
from qnb.codec.signing import Signer, decode
from qnb.errors import CannotUnpickle, SoftTimeout, TaskTimeout
from qnb.worker.lane import _die_with_worker
from qnb.worker.protocol import Report, Unpacker, Welcome, Work, pack
from qnb.worker.runner import Record, Runner


def main(channel: int, page: int, life: int) -> None:
    """Serve works until the worker closes the channel. No page is written: many calls run at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_worker, args=(life,), daemon=True).start()
    asyncio.run(_serve(socket.socket(fileno=channel)))


async def _serve(sock: socket.socket) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    unpacker, runner, calls = Unpacker(), None, set[asyncio.Task[None]]()
    outgoing: asyncio.Queue[Report] = asyncio.Queue()
    writer = asyncio.create_task(_write(sock, outgoing))
    while data := await loop.sock_recv(sock, 1 << 20):
        for body in unpacker.feed(data):
            if runner is None:
                welcome = decode(body, Welcome)
                runner = Runner(welcome.worker, Signer(welcome.key), lambda *_: None, outgoing.put_nowait)
                continue
            for call in _start(runner, decode(body, Work)):
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


def _start(runner: Runner, work: Work) -> list[asyncio.Task[None]]:
    """A task for every call of the work."""
    try:
        function = runner.function(work)
    except CannotUnpickle as error:
        Record(runner, work).fail_all(error)
        return []
    pickled, calls = decode_calls(work.args)
    return [
        asyncio.create_task(_call(runner, work, work.first + position, function, call, pickled))
        for position, call in enumerate(calls)
    ]


async def _call(runner: Runner, work: Work, index: int, function: Any, call: Any, pickled: bool) -> None:
    single = Work(
        work.serial, work.run, index, 1, work.hash, work.name, None, b"", work.queued_at, work.attempt, work.retries
    )
    record = Record(runner, single)
    try:
        args, kwargs = loads(call) if pickled else call
        record.values.append(await _limited(function(*args, **kwargs), work))
    except BaseException as error:  # its own CancelledError too: nobody else cancels a call
        record.fail(index, error)
    record.ends.append(time())
    record.report(rest=None)


async def _limited(coroutine: Any, work: Work) -> Any:
    """Await with the work's soft_timeout and timeout; a coroutine that blocks the loop is killed by the worker."""
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
