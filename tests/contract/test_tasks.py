"""`@session.task` with each of its options, `options()`, and what a Future tells."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.contract.conftest import WORKERS, Gate, until

SECONDS = 20.0


def failing(path: Path, times: int) -> Callable[[], int]:
    """A function that raises so many times and then gives the number of its run."""
    name = str(path)

    def run() -> int:
        with open(name, "a+") as file:
            file.write("x")
            count = file.tell()
        if count <= times:
            raise ValueError(f"run {count}")
        return count

    return run


# The decorator --------------------------------------------------------------------------------------------------


def test_decorator(session: qnb.Session) -> None:
    @session.task
    def plain(x: int) -> int:
        """Doubles."""
        return 2 * x

    @session.task(retries=1)
    def with_options(x: int, y: int = 1) -> int:
        return x * y

    assert isinstance(plain, qnb.Task)
    assert plain(2) == 4, "called, it runs here"
    assert plain.__doc__ == "Doubles."
    assert plain.__name__ == "plain"
    future = plain.submit(3)
    assert isinstance(future, qnb.Future)
    assert future.result(SECONDS) == 6
    assert session.submit(plain, 4).result(SECONDS) == 8, "the same"
    batch = plain.map(range(3))
    assert isinstance(batch, qnb.Batch)
    assert batch.results(SECONDS) == [0, 2, 4]
    assert with_options.submit(2, y=5).result(SECONDS) == 10
    assert with_options.starmap([(2, 3), (4, 5)]).results(SECONDS) == [6, 20]
    assert with_options.sweep({"x": [1, 2]}, y=7).results(SECONDS) == [7, 14]
    assert session.map(plain, [1]).results(SECONDS) == [2]
    assert "plain" in repr(plain)


def test_options_makes_another_task(session: qnb.Session) -> None:
    task = session.task(retries=2, priority=1)(abs)
    other = task.options(priority=9, name="other")
    assert (task.task_options.priority, other.task_options.priority, other.task_options.retries) == (1, 9, 2)
    assert other.submit(-1).result(SECONDS) == 1
    assert other.map([-1]).name == "other"


@pytest.mark.parametrize(
    "options",
    [
        {"retry": 3}, {"timeout": 0}, {"timeout": -1}, {"soft_timeout": 0}, {"priority": 10}, {"priority": -1},
        {"retries": -1}, {"backoff": -1}, {"delay": -1}, {"expires": 0}, {"max_deliveries": 0},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options(session: qnb.Session, options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(qnb.ConfigurationError, match=name):
        session.task(**options)
    with pytest.raises(qnb.ConfigurationError, match=name):
        session.task(abs).options(**options)


def test_an_unknown_option_names_those_there_are(session: qnb.Session) -> None:
    with pytest.raises(qnb.ConfigurationError, match=r"no option 'retry'.*retries"):
        session.task(retry=3)


# timeout and soft_timeout ---------------------------------------------------------------------------------------


def test_timeout(session: qnb.Session, gate: Gate) -> None:
    future = session.task(timeout=0.2)(gate.task).submit(1)
    with pytest.raises(qnb.TaskTimeout, match=r"timeout of 0\.2 s") as caught:
        future.result(SECONDS)
    assert isinstance(caught.value, TimeoutError)
    assert future.done()
    assert future.state == "failed"
    assert session.map(lambda i: i, range(10)).results(SECONDS) == list(range(10)), "the lanes go on"


def test_timeout_holds_for_a_batch_call_by_call(session: qnb.Session, gate: Gate) -> None:
    wait = gate.task

    def second_waits(index: int) -> int:
        return wait(index) if index == 1 else index

    batch = session.task(timeout=0.4)(second_waits).map(range(6), chunksize=6)
    assert batch.wait(SECONDS)
    assert [future.state for future in batch.as_completed()].count("failed") == 1
    assert batch[1].state == "failed"
    assert [batch[i].result() for i in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]


def test_timeout_of_a_task_that_is_quick_enough(session: qnb.Session) -> None:
    assert session.task(timeout=30, soft_timeout=20)(abs).submit(-1).result(SECONDS) == 1


def test_timeout_and_retries(session: qnb.Session, gate: Gate, tmp_path: Path) -> None:
    first = str(tmp_path / "first")
    wait = gate.task

    def slow_at_first() -> str:
        import os

        if os.path.exists(first):
            return "second"
        open(first, "w").close()
        return str(wait())

    assert session.task(timeout=0.3, retries=1, backoff=0.01)(slow_at_first).submit().result(SECONDS) == "second"


def test_soft_timeout(session: qnb.Session, kind: str) -> None:
    if kind == "memory":
        pytest.skip("threads cannot be interrupted: soft_timeout is for processes")

    def tidy(seconds: float) -> str:
        import time

        try:
            time.sleep(seconds)
        except TimeoutError as error:
            return f"tidied: {type(error).__name__}"
        return "in time"

    def untidy() -> None:
        import time

        time.sleep(30)

    assert session.task(soft_timeout=0.1)(tidy).submit(30).result(SECONDS) == "tidied: SoftTimeout"
    assert session.task(soft_timeout=5)(tidy).submit(0).result(SECONDS) == "in time"
    with pytest.raises(qnb.SoftTimeout, match=r"soft_timeout of 0\.1 s"):
        session.task(soft_timeout=0.1)(untidy).submit().result(SECONDS)


# retries --------------------------------------------------------------------------------------------------------


def test_retries(session: qnb.Session, tmp_path: Path) -> None:
    batch = session.task(retries=3, backoff=0.01)(lambda run: run()).map([failing(tmp_path / "count", 2)])
    assert batch.results(SECONDS) == [3]
    assert batch.df["attempts"].tolist() == [3]
    assert batch.df["state"].tolist() == ["done"]


def test_retries_are_used_up(session: qnb.Session, tmp_path: Path) -> None:
    path = tmp_path / "count"
    future = session.task(retries=2, backoff=0.01)(failing(path, 100)).submit()
    with pytest.raises(ValueError, match="run 3"):
        future.result(SECONDS)
    assert future.state == "failed"
    assert path.read_text() == "xxx"


def test_no_retries_by_default(session: qnb.Session, tmp_path: Path) -> None:
    path = tmp_path / "count"
    assert isinstance(session.submit(failing(path, 9)).exception(SECONDS), ValueError)
    assert path.read_text() == "x"


def test_retries_in_the_middle_of_a_frame(session: qnb.Session, tmp_path: Path) -> None:
    """Only the call that failed is tried again."""
    folder = str(tmp_path)

    def work(index: int) -> int:
        with open(f"{folder}/{index}", "a+") as file:
            file.write("x")
            if index % 3 == 0 and file.tell() == 1:
                raise ValueError(index)
        return index

    batch = session.task(retries=1, backoff=0.01)(work).map(range(9), chunksize=9)
    assert batch.results(SECONDS) == list(range(9))
    assert batch.df["attempts"].tolist() == [2, 1, 1] * 3
    assert [(tmp_path / str(i)).read_text() for i in range(9)] == ["xx", "x", "x"] * 3


def test_retrying_is_a_state_and_can_be_cancelled(session: qnb.Session, tmp_path: Path) -> None:
    path = tmp_path / "count"
    future = session.task(retries=1, backoff=1000)(failing(path, 1)).submit()
    until(lambda: future.state == "retrying")
    assert not future.done()
    assert future.cancel(), "it does not run: it waits for its back-off"
    assert future.state == "cancelled"
    assert path.read_text() == "x"


def test_backoff_grows_with_jitter(session: qnb.Session, tmp_path: Path) -> None:
    """Pauses of 0.2 and 0.4 s, each between half of that and all of it."""
    name = str(tmp_path / "times")

    def work() -> None:
        import time

        with open(name, "a") as file:
            file.write(f"{time.time()}\n")
        raise ValueError

    session.task(retries=2, backoff=0.2)(work).submit().exception(SECONDS)
    first, second, third = map(float, Path(name).read_text().split())
    assert second - first >= 0.1
    assert third - second >= 0.2


# priority, delay, expires, queue, name --------------------------------------------------------------------------


@pytest.fixture
def levels(session: qnb.Session) -> None:
    """Priorities that have been used before: where a level is a queue of its own, its first use makes it."""
    for priority in (0, 5, 9):
        session.task(priority=priority)(abs).submit(-1).result(SECONDS)


def test_priority(levels: None, session: qnb.Session, blocked: Gate, tmp_path: Path) -> None:
    name = str(tmp_path / "order")

    def note(priority: int) -> None:
        with open(name, "a") as file:
            file.write(f"{priority}\n")

    task = session.task(note)
    batches = [task.options(priority=priority).map([priority] * 20, chunksize=1) for priority in (0, 5, 9)]
    blocked.open()
    for batch in batches:
        batch.results(SECONDS)
    # A worker may have taken a few before it was blocked, and two lanes race: it is the bulk that tells.
    order = [int(line) for line in Path(name).read_text().split()]
    places = {priority: sum(i for i, p in enumerate(order) if p == priority) for priority in (0, 5, 9)}
    assert places[9] < places[5] < places[0]


def test_delay(session: qnb.Session) -> None:
    def now() -> float:
        import time

        return time.time()

    begun = time.time()
    delayed = session.task(delay=0.5)(now).submit()
    at_once = session.submit(now)
    assert at_once.result(SECONDS) < begun + 0.5
    assert delayed.result(SECONDS) >= begun + 0.5


def test_expires(session: qnb.Session, blocked: Gate, gates: Callable[[], Gate]) -> None:
    never = gates()
    future = session.task(expires=0.05)(never.task).submit()
    session.flush()
    threading.Event().wait(0.06)
    blocked.open()
    with pytest.raises(qnb.TaskExpired, match="expires") as caught:
        future.result(SECONDS)
    assert isinstance(caught.value, CancelledError)
    assert future.cancelled()
    assert future.state == "cancelled"
    assert never.started() == []


def test_expires_in_time(session: qnb.Session) -> None:
    assert session.task(expires=30)(abs).submit(-1).result(SECONDS) == 1


def test_queue(session: qnb.Session, place: str) -> None:
    """A task goes to the queue it names; only a worker of that queue runs it."""
    elsewhere = session.task(queue="elsewhere")(abs)
    future = elsewhere.submit(-5)
    session.flush()
    until(lambda: session.broker.depth("elsewhere") in (1, None))  # None: this broker cannot tell
    session.submit(abs, -1).result(SECONDS)
    assert not future.done()
    with qnb.Session(place, workers=1, queue="elsewhere") as other:
        assert other.submit(abs, -6).result(SECONDS) == 6
        assert future.result(SECONDS) == 5


def test_name(session: qnb.Session) -> None:
    assert session.task(name="the name")(abs).map([1]).name == "the name"
    assert session.map(abs, [1]).name == "abs"


# max_deliveries and lost ----------------------------------------------------------------------------------------


def test_lost(session: qnb.Session, kind: str, tmp_path: Path) -> None:
    if kind == "memory":
        pytest.skip("a thread cannot die without its process")
    name = str(tmp_path / "deaths")

    def die(how: str) -> None:
        import os
        import signal

        with open(name, "a") as file:
            file.write("x")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)

    once = session.task(max_deliveries=1)(die)
    killed, ended = once.submit("kill"), once.submit("exit")
    with pytest.raises(qnb.TaskLost, match="SIGKILL"):
        killed.result(SECONDS)
    with pytest.raises(qnb.TaskLost, match="exit code 3"):
        ended.result(SECONDS)
    assert killed.state == ended.state == "lost"
    assert Path(name).read_text() == "xx"
    thrice = session.submit(die, "exit")
    assert "3 times" in str(thrice.exception(SECONDS))
    assert Path(name).read_text() == "xxxxx"
    reasons = until(lambda: len(found := [x.reason for x in session.broker.dead_letters("qnb")]) == 3 and found)
    assert ["SIGKILL" in reason for reason in reasons].count(True) == 1
    assert ["exit code 3" in reason for reason in reasons].count(True) == 2


def test_a_call_that_kills_its_lane_spares_its_mates(session: qnb.Session, kind: str) -> None:
    if kind == "memory":
        pytest.skip("a thread cannot die without its process")

    def work(index: int) -> int:
        import os

        if index == 4:
            os._exit(1)
        return index

    batch = session.task(max_deliveries=2)(work).map(range(10), chunksize=10)
    assert batch.wait(SECONDS)
    assert batch.counts == {"done": 9, "lost": 1}
    assert batch[4].state == "lost"


def test_a_function_that_kills_whoever_opens_it(session: qnb.Session, kind: str) -> None:
    """Dying while the function is unpickled is charged to the call as well: it does not go round for ever."""
    if kind == "memory":
        pytest.skip("a thread cannot die without its process")

    class Deadly:
        def __reduce__(self) -> Any:
            import os

            return os._exit, (7,)

    deadly = Deadly()
    future = session.task(max_deliveries=2)(lambda: deadly).submit()
    assert isinstance(future.exception(SECONDS), qnb.TaskLost)
    assert session.submit(abs, -1).result(SECONDS) == 1


# What a Future tells --------------------------------------------------------------------------------------------


def test_id_and_state(session: qnb.Session) -> None:
    futures = [session.submit(abs, -n) for n in range(5)]
    assert len({future.id for future in futures}) == 5
    for future in futures:
        assert re.fullmatch(r".+:\d+", future.id)
        future.result(SECONDS)
        assert future.state == "done"
        assert session.state(future.id) == "done"
        assert future.id in repr(future)


def test_state_of_an_id(session: qnb.Session, blocked: Gate) -> None:
    future, batch = session.submit(abs, -1), session.map(abs, range(3))
    assert session.state(future.id) == session.state(batch[1].id) == "queued"
    for nobody in ("nobody-0:0", f"{batch.run}:3", f"{batch.run}:99999999", "no id at all", ""):
        assert session.state(nobody) == "unknown"
    future.cancel()
    assert session.state(future.id) == "cancelled"
    blocked.open()
    batch.results(SECONDS)
    assert session.state(batch[1].id) == "done"


def test_state_of_an_id_in_another_session(session: qnb.Session, sister: qnb.Session) -> None:
    good, bad = session.submit(abs, -1), session.submit(int, "x")
    good.result(SECONDS), bad.exception(SECONDS)
    if session.backend.scheme == "rpc":
        pytest.skip("results are kept nowhere")
    assert sister.state(good.id) == "done"
    assert sister.state(bad.id) == "failed"


def test_terminate(session: qnb.Session, gate: Gate) -> None:
    future = session.submit(gate.task)
    gate.wait()
    until(lambda: future.running())
    assert not future.cancel()
    assert future.cancel(terminate=True) or until(future.cancelled)
    assert future.state == "cancelled"
    with pytest.raises(CancelledError):
        future.result()
    assert session.map(lambda i: i, range(2 * WORKERS)).results(SECONDS) == list(range(2 * WORKERS))


def test_terminate_spares_its_mates(session: qnb.Session, gate: Gate) -> None:
    wait = gate.task

    def second_waits(index: int) -> int:
        return wait(index) if index == 1 else index

    batch = session.map(second_waits, range(4), chunksize=4)
    gate.wait()
    until(lambda: batch[1].state == "running")
    batch[1].cancel(terminate=True)
    assert batch.wait(SECONDS)
    assert [batch[i].state for i in range(4)] == ["done", "cancelled", "done", "done"]


def test_key_of_a_method(session: qnb.Session) -> None:
    """Bound methods, callable objects and coroutine functions are functions too."""

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, x: int) -> int:
            return self.n + x

        def __call__(self, x: int) -> int:
            return self.n * x

        @classmethod
        def make(cls, n: int) -> Any:
            return cls(n)

        @staticmethod
        def double(x: int) -> int:
            return 2 * x

    adder = Adder(3)
    assert session.submit(adder.add, 4).result(SECONDS) == 7
    assert session.submit(adder, 4).result(SECONDS) == 12
    assert session.submit(Adder.double, 4).result(SECONDS) == 8
    assert session.submit(functools.partial(adder.add, 1)).result(SECONDS) == 4
    made = session.submit(Adder.make, 5).result(SECONDS)
    assert made.n == 5
