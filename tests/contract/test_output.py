"""What tasks print and tell, by call: in the Future, in the table, and while they run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.contract.conftest import FEW, until

BROKERS = FEW


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[str]:
    """A file for which tasks wait; made at the end, so that no lane stays blocked."""
    path = tmp_path / "open"
    yield str(path)
    path.touch()


def speak(word: str) -> str:
    import logging
    import sys
    import warnings

    print("out", word)
    print("err", word, file=sys.stderr)
    logging.getLogger("task").warning("log %s", word)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"warned {word}", stacklevel=1)
    return word


def test_output_of_a_call(session: qnb.Session, kind: str) -> None:
    future = session.submit(speak, "a")
    assert future.result(20) == "a"
    lines = future.output.splitlines()
    assert lines[:2] == ["out a", "err a"]
    assert any("log a" in line for line in lines[2:]) or kind == "memory"  # there pytest has the log of this process
    assert any("warned a" in line for line in lines[2:]) or kind == "memory"
    silent = session.submit(int)
    silent.result(20)
    assert silent.output == ""
    assert silent.progress is None


def test_each_call_of_a_batch_has_its_own(session: qnb.Session) -> None:
    def odd(number: int) -> None:
        if number % 2:
            print("number", number)

    batch = session.map(odd, range(1000))
    assert batch.wait(30)
    wanted = [f"number {number}\n" if number % 2 else "" for number in range(1000)]
    assert list(batch.df["output"]) == wanted
    assert batch[7].output == "number 7\n"
    assert batch[8].output == ""
    again = session.attach(batch.run) if session.backend.blobs else batch
    assert list(again.df["output"]) == wanted


def test_a_call_that_failed_has_printed(session: qnb.Session) -> None:
    def fail() -> None:
        print("before")
        raise ValueError("x")

    future = session.submit(fail)
    assert isinstance(future.exception(20), ValueError)
    assert future.output == "before\n"


def test_calls_of_coroutines_side_by_side(session: qnb.Session) -> None:
    async def talk(number: int) -> None:
        import asyncio

        for step in range(3):
            print(number, step)
            await asyncio.sleep(0.01)

    batch = session.map(talk, range(5))
    assert batch.wait(30)
    assert list(batch.df["output"]) == [f"{n} 0\n{n} 1\n{n} 2\n" for n in range(5)]


def test_children_and_descriptors(session: qnb.Session, kind: str) -> None:
    if kind == "memory":
        pytest.skip("threads share the descriptors of their process: not to be taken from it")

    def child(word: str) -> None:
        import subprocess

        subprocess.run(["echo", "child", word], check=True)
        os.write(2, b"raw " + word.encode() + b"\n")

    batch = session.map(child, "abcdef")
    assert batch.wait(30)
    assert list(batch.df["output"]) == [f"child {word}\nraw {word}\n" for word in "abcdef"]


def test_a_fork_may_print(session: qnb.Session, kind: str) -> None:
    if kind == "memory":
        pytest.skip("threads share the descriptors of their process")

    def fork() -> None:

        if not (child := os.fork()):
            print("from the fork")
            os._exit(0)
        os.waitpid(child, 0)

    future = session.submit(fork)
    future.result(20)
    assert future.output == "from the fork\n"


def test_much_output_is_bounded(session: qnb.Session) -> None:
    def shout() -> None:
        for number in range(200_000):
            print(number)

    future = session.submit(shout)
    future.result(60)
    assert len(future.output) < 66_000
    assert future.output.startswith("0\n1\n2\n")
    assert future.output.endswith("\n199998\n199999\n")
    assert " characters left out …\n" in future.output


def test_output_while_it_runs(session: qnb.Session, opened: str) -> None:
    def talk(name: str) -> None:
        import time

        print("begun", name)
        while not os.path.exists(opened):
            time.sleep(0.01)
        print("ended", name)

    future = session.submit(talk, "single")
    batch = session.map(talk, ["of a batch"])
    until(lambda: future.output == "begun single\n" and batch[0].output == "begun of a batch\n")
    assert {future.state, batch[0].state} == {"running"}
    assert list(batch.df["output"]) == ["begun of a batch\n"]
    assert "begun of a batch" in repr(batch)
    Path(opened).touch()
    future.result(20)
    batch.results(20)
    assert future.output == "begun single\nended single\n"
    assert batch[0].output == "begun of a batch\nended of a batch\n"


def test_what_a_killed_call_has_printed(session: qnb.Session, kind: str) -> None:
    if kind == "memory":
        pytest.skip("a thread cannot be killed")

    def hang(seconds: int) -> None:
        import time

        print("last words")
        time.sleep(seconds)

    task = session.task(hang).options(timeout=1.0)
    future, batch = task.submit(60), task.map([60])
    assert isinstance(future.exception(30), qnb.TaskTimeout)
    assert future.output == "last words\n"
    assert batch.wait(30)
    assert list(batch.df["output"]) == ["last words\n"]


def test_progress(session: qnb.Session, opened: str) -> None:
    def work(steps: int) -> str:
        import time

        for _ in qnb.track(range(steps)):
            while not os.path.exists(opened):
                qnb.progress(1, steps, "waiting")
                time.sleep(0.01)
        return "over"

    future = session.submit(work, 10)
    batch = session.map(work, [10])
    until(lambda: [future.progress, batch[0].progress] == [(1, 10, "waiting")] * 2)
    assert "1 of 10" in repr(batch)
    Path(opened).touch()
    assert future.result(20) == "over"
    batch.results(20)
    assert future.progress == batch[0].progress == (10, 10, "")


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.asyncio"])
def test_bars_are_progress(session: qnb.Session, kind: str, opened: str, module: str) -> None:
    if kind == "memory" and module == "tqdm.notebook":
        pytest.skip("a notebook's bars in a thread of its kernel are shown by that kernel")

    def work() -> str:
        import importlib
        import os
        import sys
        import time

        tqdm = importlib.import_module(module).tqdm
        bar = tqdm(range(10), desc="outer")
        for step in bar:
            for _ in tqdm(range(3), leave=False, desc="inner"):
                pass
            if step == 4:
                bar.set_postfix(loss=0.5)
                tqdm.write("half")
                with tqdm(total=3, leave=False, desc="inner") as inner:
                    inner.refresh()
            while step == 4 and not os.path.exists(opened):
                time.sleep(0.01)
        tqdm(range(2), file=sys.__stderr__, disable=True)
        return "over"

    future = session.submit(work)
    # tqdm itself looks at its count ten times a second at most, so that nobody knows which it is here.
    until(lambda: (future.progress or (0, 0, ""))[1:] == (10, "outer, loss=0.5"))
    Path(opened).touch()
    assert future.result(20) == "over"
    assert future.output == "half\n"
    assert future.progress == (10, 10, "outer, loss=0.5")


def test_current(session: qnb.Session) -> None:
    def ask(*_: int) -> Any:
        return qnb.current()

    async def ask_there() -> Any:
        return qnb.current()

    outside: Any = qnb.current()
    assert outside is None
    begun = time.time()
    for function in (ask, ask_there):
        future = session.task(function).options(timeout=100.0).submit()
        told = future.result(20)
        assert (told.id, told.run, told.index, told.attempt) == (future.id, future.id.rpartition(":")[0], 0, 1)
        assert told.worker in session.workers.names
        assert begun + 99 < told.deadline < time.time() + 101
    batch = session.map(ask, range(5))
    assert [told.id for told in batch.results(20)] == [f"{batch.run}:{n}" for n in range(5)]
    assert all(told.deadline is None for told in batch.results())


def test_not_ten_thousand_notes(session: qnb.Session) -> None:
    """A call that prints all the time is told ten times a second, and short ones not at all."""
    notes: list[float] = []

    def shout(seconds: float) -> None:
        import time

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            print("x" * 100)
            qnb.progress(time.monotonic(), 1)

    batch = session.map(shout, [1.5])
    batch.on_change(lambda: notes.append(time.monotonic()))
    assert batch.wait(30)
    assert 2 <= len(notes) <= 1.5 / 0.1 + 5
    short = session.map(shout, [0.001] * 50)
    heard: list[int] = []
    short.on_change(lambda: heard.append(len(short.data.heard)))
    assert short.wait(30)
    assert not any(heard)
