"""`Future.replay()`: the call once more, here, with the code and the arguments that were sent."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.contract.conftest import Gate, until

SECONDS = 20.0


class Odd(Exception):
    """What a task of these tests raises."""


def ratio(a: float, b: float = 1, *, scale: float = 1) -> tuple[int, float]:
    """Where it ran, and a value."""
    return os.getpid(), scale * a / b


def make(text: str) -> Any:
    """A function of the notebook, as a cell makes it when it is run again."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(f"def f(*args, **kwargs):\n    return {text!r}, args, kwargs\n", "cell", "exec"), namespace)
    return namespace["f"]


def test_a_submit(session: qnb.Session) -> None:
    future = session.submit(ratio, 6, 3, scale=2)
    assert future.result(SECONDS)[1] == 4
    assert future.replay() == (os.getpid(), 4)
    future = session.submit(ratio, 6, b=3)
    assert future.replay() == (os.getpid(), 2), "whether or not it is over"
    assert future.result(SECONDS)[1] == 2
    assert session.submit(lambda *args: args, [1], {2}).replay() == ([1], {2})
    assert session.submit("os.path.basename", "a/b").replay() == "b"
    assert session.submit(int).replay() == 0


def test_the_same_version(session: qnb.Session, kind: str) -> None:
    f = make("before")
    future, batch = session.submit(f, 1), session.map(f, [1, 2])
    f.__code__ = make("after").__code__
    assert session.submit(f, 1).result(SECONDS)[0] == "after"
    assert future.replay() == ("before", (1,), {})
    assert batch[1].replay() == ("before", (2,), {})
    batch.results(SECONDS)


def test_calls_of_batches(session: qnb.Session) -> None:
    batch = session.map(ratio, [1, 2, 3], [4, 5, 6])
    assert batch[2].replay() == (os.getpid(), 0.5)
    sweep = session.sweep(ratio, {"b": [1, 2], "scale": [10]}, a=4)
    assert [future.replay()[1] for future in sweep[:]] == [40, 20]
    assert session.starmap(ratio, [(8, 4)])[0].replay()[1] == 2
    for each in (batch, sweep):
        each.results(SECONDS)


def test_a_run_of_another_session(session: qnb.Session, sister: qnb.Session) -> None:
    if not session.backend.blobs:
        pytest.skip("nothing is kept")
    f = make("kept")
    batch = session.map(f, [1, 2], [[3], {4}])
    batch.results(SECONDS)
    attached = sister.attach(batch.run)
    assert attached[1].replay() == ("kept", (2, {4}), {})
    key = session.task(key=f"replay {os.getpid()}")(f).submit(5, x=6)
    key.result(SECONDS)
    assert sister.attach(key.id.rpartition(":")[0])[0].replay() == ("kept", (5,), {"x": 6})


def test_its_own_exception(session: qnb.Session) -> None:
    def fail(depth: int) -> Any:
        if depth:
            return fail(depth - 1)
        raise Odd("as asked")

    future = session.submit(fail, 2)
    assert isinstance(future.exception(SECONDS), Odd)
    with pytest.raises(Odd, match="as asked") as caught:
        future.replay()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[-3:]] == ["fail"] * 3
    assert frames[-1].line == 'raise Odd("as asked")'
    assert caught.value.__traceback__ is not None
    innermost = caught.value.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost.tb_frame.f_locals["depth"] == 0, "its own frame, with what it had"
    assert future.state == "failed"


def test_a_coroutine(session: qnb.Session) -> None:
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    future = session.submit(later, 1)
    assert future.replay() == 2

    async def inside() -> Any:
        return future.replay()

    assert asyncio.run(inside()) == 2, "in a notebook too, whose loop runs"
    assert future.result(SECONDS) == 2


def test_it_changes_nothing(session: qnb.Session, gate: Gate) -> None:
    future = session.submit(gate.task, 1)
    gate.wait()
    state = future.state
    gate.open()
    assert future.replay() == 1
    assert state in ("queued", "running")
    assert future.result(SECONDS) == 1


def test_arguments_that_are_gone(session: qnb.Session, sister: qnb.Session) -> None:
    large = session.submit(len, bytes(100_000))
    with pytest.raises(qnb.QnbError, match=r"the arguments of .*:\d+ are not here: .*65,536 bytes"):
        large.replay()
    assert large.result(SECONDS) == 100_000
    if session.backend.blobs:
        session.submit(abs, -1).result(SECONDS)
        run = large.id.rpartition(":")[0]
        until(lambda: run in set(session.runs().index))
        attached = sister.attach(run)
        with pytest.raises(qnb.QnbError, match="are not here"):
            attached[0].replay()
        with pytest.raises(qnb.QnbError, match="were not kept"):
            sister.repeat(attached, [0])


def test_shipped_modules(session: qnb.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What was sent, even when the file says something else by now."""
    if kind == "memory":
        pytest.skip("its workers have this process's own modules")
    name = f"replayed{os.getpid()}"
    path = tmp_path / f"{name}.py"
    path.write_text("def f():\n    return 'sent'\n")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(f"def call():\n    import {name}\n    return {name}.f()\n", namespace)
    session.ship(tmp_path)
    future = session.submit(namespace["call"])
    assert future.result(SECONDS) == "sent"
    path.write_text("def f():\n    return 'changed since'\n")
    before = list(sys.path)
    assert future.replay() == "sent"
    assert sys.path == before
    assert name not in sys.modules
    session._shipments._all.clear()
    session._shipments._archives = ()
