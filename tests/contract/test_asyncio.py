"""Futures and batches are awaitable; coroutine functions run; a Session is an executor for asyncio."""

# ruff: noqa: ASYNC110, ASYNC230, ASYNC240 - what the coroutines of tests do on a worker

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

import qnb
from tests.contract.conftest import FEW, Gate, until

BROKERS = FEW
SECONDS = 20.0


def test_await_future(session: qnb.Session) -> None:
    async def main() -> Any:
        return await session.submit(abs, -5)

    assert asyncio.run(main()) == 5


def test_await_failed_future(session: qnb.Session) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="invalid literal"):
            await session.submit(int, "x")

    asyncio.run(main())


def test_await_batch(session: qnb.Session) -> None:
    async def main() -> Any:
        return await session.map(abs, [-1, -2]), await session.map(abs, [])

    assert asyncio.run(main()) == ([1, 2], [])


def test_await_failed_batch(session: qnb.Session) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="invalid literal"):
            await session.map(int, ["1", "x", "3"])

    asyncio.run(main())


def test_await_what_is_over(session: qnb.Session) -> None:
    future, batch = session.submit(abs, -5), session.map(abs, [-1])
    future.result(SECONDS), batch.results(SECONDS)

    async def main() -> Any:
        return await future, await batch, await future

    assert asyncio.run(main()) == (5, [1], 5)


def test_gather(session: qnb.Session) -> None:
    async def main() -> Any:
        return await asyncio.gather(*map(asyncio.wrap_future, [session.submit(abs, -n) for n in range(50)]))

    async def bare() -> Any:
        return await asyncio.gather(*(asyncio.ensure_future(session.submit(abs, -n)) for n in range(50)))

    assert asyncio.run(main()) == asyncio.run(bare()) == list(range(50))


def test_the_loop_goes_on(session: qnb.Session, gate: Gate) -> None:
    """While a future is awaited the loop does other things; here it is the loop that lets the task go on."""

    async def main() -> Any:
        waiting = asyncio.ensure_future(session.submit(gate.task, 3))
        batch = asyncio.ensure_future(session.map(gate.task, [4]))
        await asyncio.to_thread(gate.wait, 2)
        gate.open()
        return await waiting, await batch

    assert asyncio.run(main()) == (3, [4])


def test_wait_for_timeout(session: qnb.Session, gate: Gate) -> None:
    async def main() -> None:
        future, batch = session.submit(gate.task), session.map(gate.task, [1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batch, 0.05)
        async with asyncio.timeout(10):
            assert await session.submit(abs, -1) == 1

    if len(session.workers) and session.workers[0]["concurrency"] < 3:
        session.control.pool_grow(1)
    asyncio.run(main())
    gate.open()


def test_cancelling_the_awaiting_task_cancels_what_is_queued(session: qnb.Session, blocked: Gate) -> None:
    future = session.submit(abs, -1)

    async def main() -> None:
        task = asyncio.ensure_future(future)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    if len(session.workers) and session.workers[0]["concurrency"] > 2:
        session.control.pool_shrink(1)
    asyncio.run(main())
    assert until(future.done)
    blocked.open()


def test_run_in_executor(session: qnb.Session) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        one = await loop.run_in_executor(session, pow, 2, 10)
        many = await asyncio.gather(*(loop.run_in_executor(session, abs, -n) for n in range(20)))
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(session, divmod, 1, 0)
        return one, many

    assert asyncio.run(main()) == (1024, list(range(20)))


# Coroutine functions on workers ---------------------------------------------------------------------------------


def test_coroutine_function(session: qnb.Session) -> None:
    async def double(x: int, y: int = 2) -> int:
        await asyncio.sleep(0)
        return x * y

    assert session.submit(double, 4).result(SECONDS) == 8
    assert session.submit(double, 4, y=5).result(SECONDS) == 20
    assert session.map(double, range(20)).results(SECONDS) == [2 * i for i in range(20)]
    assert asyncio.run(double(1)) == 2


def test_coroutines_run_at_the_same_time(session: qnb.Session) -> None:
    """Each waits until all have started: on one lane a call at a time they would wait for ever."""

    async def meet(index: int, count: int) -> int:
        import asyncio
        import sys

        met = sys.__dict__.setdefault("_qnb_test_met", set())
        met.add(index)
        while len(met) < count:
            await asyncio.sleep(0.005)
        return index

    count = 30
    assert session.starmap(meet, [(i, count) for i in range(count)]).results(SECONDS) == list(range(count))


def test_coroutine_that_raises(session: qnb.Session) -> None:
    class Own(Exception):
        pass

    async def fail() -> None:
        await asyncio.sleep(0)
        raise Own("from a coroutine")

    future = session.submit(fail)
    with pytest.raises(Own, match="from a coroutine"):
        future.result(SECONDS)
    assert "in fail" in future.traceback


def test_coroutine_timeouts(session: qnb.Session) -> None:
    async def slow() -> None:
        await asyncio.sleep(60)

    async def tidy() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            pass
        return ""

    with pytest.raises(qnb.TaskTimeout, match=r"0\.1 s"):
        session.task(timeout=0.1)(slow).submit().result(SECONDS)
    with pytest.raises(qnb.SoftTimeout, match=r"0\.1 s"):
        session.task(soft_timeout=0.1, timeout=30)(tidy).submit().result(SECONDS)


def test_coroutine_retries(session: qnb.Session, tmp_path: Any) -> None:
    name = str(tmp_path / "count")

    async def flaky() -> int:
        with open(name, "a+") as file:
            file.write("x")
            if file.tell() < 3:
                raise ValueError("again")
            return file.tell()

    batch = session.task(retries=3, backoff=0.01)(flaky).starmap([()])
    assert batch.results(SECONDS) == [3]
    assert batch.df["attempts"].tolist() == [3]


def test_coroutine_that_kills_its_lane(session: qnb.Session, tmp_path: Any) -> None:
    """The others on the loop are run again, and each ends once."""
    name = str(tmp_path / "died")

    async def work(index: int) -> int:
        import os

        await asyncio.sleep(0.05 * (index % 3))
        if index == 5 and not os.path.exists(name):
            open(name, "w").close()
            os._exit(1)
        return index

    batch = session.map(work, range(12))
    assert batch.results(SECONDS) == list(range(12))
    assert batch.counts == {"done": 12}


def test_terminate_coroutine_is_told(session: qnb.Session) -> None:
    async def stay() -> str:
        await asyncio.sleep(0.3)
        return "stayed"

    future = session.submit(stay)
    begun = time.monotonic()
    future.cancel(terminate=True)
    try:
        assert future.result(SECONDS) == "stayed"
    except qnb.QnbError:
        raise
    except CancelledError:
        assert future.cancelled()
    assert time.monotonic() - begun < SECONDS
