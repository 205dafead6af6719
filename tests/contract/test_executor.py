"""A Session is a concurrent.futures.Executor: the checks of CPython's own test_concurrent_futures, by their meaning."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import qnb
from tests.contract.conftest import FEW, Gate, until

BROKERS = FEW
SECONDS = 20.0


def test_is_an_executor(session: qnb.Session) -> None:
    assert isinstance(session, cf.Executor)
    assert isinstance(session.submit(int), cf.Future)


# submit ---------------------------------------------------------------------------------------------------------


def test_submit(session: qnb.Session) -> None:
    assert session.submit(pow, 2, 8).result(SECONDS) == 256


def test_submit_keyword(session: qnb.Session) -> None:
    def capture(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert session.submit(lambda x, y: x * y, 2, y=8).result(SECONDS) == 16
    # Names that submit itself uses belong to the function.
    assert session.submit(capture, 1, self=2, fn=3).result(SECONDS) == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        session.submit(fn=capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        session.submit(arg=1)  # type: ignore[call-arg]


def test_what_submit_can_run(session: qnb.Session) -> None:
    import functools
    import operator

    factor = 3
    assert session.submit(lambda x: x * factor, 2).result(SECONDS) == 6
    assert session.submit(functools.partial(pow, 2), 5).result(SECONDS) == 32
    assert session.submit("a-b".split, "-").result(SECONDS) == ["a", "b"]
    assert session.submit(operator.itemgetter(1), [4, 5]).result(SECONDS) == 5
    assert session.submit(dict, a=1).result(SECONDS) == {"a": 1}


def test_an_argument_that_changes_afterwards(session: qnb.Session) -> None:
    """What is submitted is what it was at that moment."""
    numbers = [1, 2]
    future = session.submit(sum, numbers)
    numbers.append(100)
    assert future.result(SECONDS) == 3


# Future ---------------------------------------------------------------------------------------------------------


def test_result_and_exception(session: qnb.Session) -> None:
    good, bad = session.submit(abs, -1), session.submit(int, "x")
    assert good.result(SECONDS) == 1
    assert good.exception() is None
    assert isinstance(bad.exception(SECONDS), ValueError)
    with pytest.raises(ValueError, match="invalid literal"):
        bad.result()
    for future in (good, bad):
        assert future.done()
        assert not future.running()
        assert not future.cancelled()
        assert not future.cancel()


def test_result_timeout(session: qnb.Session, gate: Gate) -> None:
    future = session.submit(gate.task, 5)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(cf.TimeoutError):
        future.exception(timeout=0)
    assert not future.done()
    gate.open()
    assert future.result(SECONDS) == 5


def test_running(session: qnb.Session, gate: Gate) -> None:
    future = session.submit(gate.task)
    gate.wait()
    until(future.running)
    assert future.state == "running"
    assert not future.done()
    assert not future.cancel()
    gate.open()
    assert future.result(SECONDS) is None
    assert future.done()
    assert not future.running()


def test_queued(session: qnb.Session, blocked: Gate) -> None:
    future = session.submit(abs, -1)
    assert not future.running()
    assert not future.done()
    assert future.state == "queued"
    blocked.open()
    assert future.result(SECONDS) == 1
    assert future.state == "done"


def test_cancel_queued(session: qnb.Session, blocked: Gate, gates: Callable[[], Gate]) -> None:
    never = gates()
    future = session.submit(never.task)
    told: list[cf.Future[Any]] = []
    future.add_done_callback(told.append)
    assert future.cancel()
    assert future.cancel(), "a second time as well"
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert future.state == "cancelled"
    assert told == [future]
    with pytest.raises(cf.CancelledError):
        future.result()
    with pytest.raises(cf.CancelledError):
        future.exception()
    blocked.open()
    # Later work has run in both lanes; what was cancelled has not.
    session.map(lambda i: i, range(20)).results(SECONDS)
    assert never.started() == []


def test_cancelled_is_in_wait_and_as_completed(session: qnb.Session, blocked: Gate) -> None:
    future, other = session.submit(abs, -1), session.submit(abs, -2)
    assert future.cancel()
    assert cf.wait([future, other], SECONDS, cf.FIRST_COMPLETED) == ({future}, {other})
    assert next(cf.as_completed([future, other], SECONDS)) is future
    blocked.open()
    assert other.result(SECONDS) == 2


def test_cancel_wakes_who_waits(session: qnb.Session, blocked: Gate) -> None:
    future = session.submit(abs, -1)
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            future.result(SECONDS)
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert future.cancel()
    thread.join(SECONDS)
    assert [type(error) for error in seen] == [cf.CancelledError]


def test_callbacks(session: qnb.Session, gate: Gate) -> None:
    order: list[object] = []
    told = threading.Event()
    future = session.submit(gate.task, 3)
    future.add_done_callback(lambda f: order.append(("first", f.result())))
    future.add_done_callback(lambda f: order.append("second"))
    future.add_done_callback(lambda f: told.set())
    assert order == []
    gate.open()
    assert told.wait(SECONDS), "without anybody waiting for the result"
    assert order == [("first", 3), "second"]
    future.add_done_callback(lambda f: order.append("at once"))
    assert order[-1] == "at once"


def test_callback_that_raises(session: qnb.Session, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()
    future = session.submit(gate.task)

    def raise_(_: object) -> None:
        raise ValueError("from a callback")

    future.add_done_callback(raise_)
    future.add_done_callback(lambda _: told.set())
    gate.open()
    assert told.wait(SECONDS)
    assert "from a callback" in caplog.text
    assert session.submit(abs, -1).result(SECONDS) == 1, "the collector goes on"


def test_callback_that_submits(session: qnb.Session) -> None:
    found: list[Any] = []
    told = threading.Event()

    def go_on(future: cf.Future[Any]) -> None:
        session.submit(abs, -future.result()).add_done_callback(lambda f: (found.append(f.result()), told.set()))

    session.submit(abs, -7).add_done_callback(go_on)
    assert told.wait(SECONDS)
    assert found == [7]


def test_many_threads_wait(session: qnb.Session, gate: Gate) -> None:
    futures = [session.submit(gate.task, i) for i in range(2)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append([f.result(SECONDS) for f in futures])) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [[0, 1]] * 8


def test_many_threads_submit(session: qnb.Session) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        futures = [session.submit(lambda x: x + 1, 100 * number + i) for i in range(50)]
        found[number] = [future.result(SECONDS) for future in futures]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n: [100 * n + i + 1 for i in range(50)] for n in range(6)}


# wait and as_completed ------------------------------------------------------------------------------------------


def test_wait_all(session: qnb.Session) -> None:
    futures = [session.submit(divmod, 9, n) for n in (1, 0, 2)]
    assert cf.wait(futures, SECONDS) == (set(futures), set())


def test_wait_20369(session: qnb.Session) -> None:
    """The same future twice is one future (bpo-20369)."""
    future = session.submit(abs, -1)
    assert cf.wait([future, future], SECONDS, cf.ALL_COMPLETED) == ({future}, set())


def test_wait_first_completed(session: qnb.Session, gate: Gate) -> None:
    slow, quick = session.submit(gate.task), session.submit(abs, -1)
    done, not_done = cf.wait([slow, quick], SECONDS, cf.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})


def test_wait_first_exception(session: qnb.Session, gate: Gate) -> None:
    slow, good, bad = session.submit(gate.task), session.submit(abs, -1), session.submit(int, "x")
    done, not_done = cf.wait([slow, good, bad], SECONDS, cf.FIRST_EXCEPTION)
    assert bad in done
    assert slow in not_done


def test_wait_first_exception_without_any(session: qnb.Session) -> None:
    futures = [session.submit(abs, -n) for n in range(5)]
    assert cf.wait(futures, SECONDS, cf.FIRST_EXCEPTION) == (set(futures), set())


def test_wait_timeout(session: qnb.Session, gate: Gate) -> None:
    quick, slow = session.submit(abs, -1), session.submit(gate.task)
    quick.result(SECONDS)
    assert cf.wait([quick, slow], 0.05) == ({quick}, {slow})


def test_as_completed(session: qnb.Session, gate: Gate) -> None:
    slow = session.submit(gate.task, "last")
    futures = [slow, *(session.submit(abs, -n) for n in range(10))]
    found = []
    for future in cf.as_completed(futures, SECONDS):
        found.append(future)
        if len(found) == 10:
            gate.open()
    assert set(found) == set(futures)
    assert found[-1] is slow


def test_as_completed_timeout(session: qnb.Session, gate: Gate) -> None:
    quick, slow = session.submit(abs, -1), session.submit(gate.task)
    quick.result(SECONDS)
    found = []
    with pytest.raises(cf.TimeoutError):
        found.extend(cf.as_completed([quick, slow], timeout=0.05))
    assert found == [quick]


def test_as_completed_duplicates(session: qnb.Session) -> None:
    future = session.submit(abs, -1)
    assert list(cf.as_completed([future] * 3, SECONDS)) == [future]


def test_as_completed_mixes_executors(session: qnb.Session) -> None:
    with cf.ThreadPoolExecutor(1) as threads:
        futures = [session.submit(abs, -1), threads.submit(abs, -2)]
        assert {future.result() for future in cf.as_completed(futures, SECONDS)} == {1, 2}


# map ------------------------------------------------------------------------------------------------------------


def test_map(session: qnb.Session) -> None:
    assert list(session.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(session.map(pow, range(10), range(4))) == [n**n for n in range(4)], "as long as the shortest"
    assert list(session.map(abs, iter([-1, -2]))) == [1, 2]
    assert list(session.map(abs, [])) == []
    assert next(session.map(abs, [-3])) == 3


def test_map_runs_without_being_read(session: qnb.Session, gate: Gate) -> None:
    session.map(gate.task, [1])
    gate.wait()


def test_map_raises_lazily(session: qnb.Session) -> None:
    values = session.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    iterator = iter(values)
    assert next(iterator) == (0, 1)
    assert next(iterator) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(iterator)


def test_map_timeout(session: qnb.Session, gate: Gate) -> None:
    def third_waits(index: int) -> int:
        return wait(index) if index == 2 else index

    wait = gate.task
    found = []
    with pytest.raises(cf.TimeoutError):
        found.extend(session.map(third_waits, range(4), timeout=2.0, chunksize=1))
    assert found == [0, 1]


def test_map_chunksize(session: qnb.Session) -> None:
    for chunksize in (1, 3, 7, 100):
        assert list(session.map(abs, range(20), chunksize=chunksize)) == list(range(20))
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            session.map(abs, range(3), chunksize=wrong)


def test_map_error_in_the_iterable(session: qnb.Session) -> None:
    def items() -> Any:
        yield 1
        raise KeyError("in the iterable")

    with pytest.raises(KeyError, match="in the iterable"):
        session.map(abs, items())


# shutdown -------------------------------------------------------------------------------------------------------


def test_submit_after_shutdown(sister: qnb.Session) -> None:
    sister.shutdown()
    sister.shutdown()  # again does nothing
    for use in (lambda: sister.submit(pow, 2, 5), lambda: sister.map(abs, [1]), lambda: sister.task(abs).submit(1)):
        with pytest.raises(RuntimeError, match="after shutdown"):
            use()


def test_shutdown_waits(sister: qnb.Session, gate: Gate) -> None:
    future = sister.submit(gate.task, 4)
    thread = threading.Thread(target=sister.shutdown)
    thread.start()
    gate.wait()
    assert thread.is_alive()
    with pytest.raises(RuntimeError):
        sister.submit(abs, 1)
    gate.open()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert future.done()
    assert future.result(0) == 4


def test_shutdown_without_wait(sister: qnb.Session, gate: Gate) -> None:
    future = sister.submit(gate.task, 4)
    gate.wait()
    sister.shutdown(wait=False)
    assert not future.done()
    gate.open()
    assert future.result(SECONDS) == 4


def test_shutdown_cancels(session: qnb.Session, sister: qnb.Session, blocked: Gate) -> None:
    futures = [sister.submit(abs, -n) for n in range(10)]
    batch = sister.map(abs, range(10))
    sister.shutdown(wait=True, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert batch.counts == {"cancelled": 10}


def test_shutdown_cancels_but_waits_for_what_runs(sister: qnb.Session, gate: Gate) -> None:
    future = sister.submit(gate.task, 1)
    gate.wait()
    threading.Timer(0.2, gate.open).start()
    sister.shutdown(wait=True, cancel_futures=True)
    assert future.result(0) == 1


def test_context_manager(session: qnb.Session, place: str) -> None:
    with qnb.Session(place, workers=0) as other:
        assert not other.closed
        future = other.submit(pow, 2, 3)
    assert future.done()
    assert future.result(0) == 8
    assert other.closed


def test_context_manager_on_an_error(session: qnb.Session, place: str) -> None:
    with pytest.raises(KeyError), qnb.Session(place, workers=0) as other:
        raise KeyError("mine")
    assert other.closed


def test_threads_end_with_the_session(session: qnb.Session, place: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    count = threading.active_count()
    for _ in range(3):
        with qnb.Session(place, workers=0) as other:
            other.submit(abs, -1)
    until(lambda: threading.active_count() <= count, 5)
    assert {thread.name for thread in threading.enumerate()} <= before


# No leaks -------------------------------------------------------------------------------------------------------


class Value:
    """Something that can be watched for its end."""


def collected(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None


# What the collector meets here may be left over from any test of this process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_result_is_not_kept(session: qnb.Session) -> None:
    class Local:
        pass

    future = session.submit(Local)
    reference, own = weakref.ref(future.result(SECONDS)), weakref.ref(future)
    session.submit(abs, 1).result(SECONDS)
    del future
    assert until(lambda: collected(own))
    assert until(lambda: collected(reference))


def test_an_exception_is_not_kept(session: qnb.Session) -> None:
    future = session.submit(int, "x")
    with pytest.raises(ValueError, match="invalid"):
        future.result(SECONDS)
    own = weakref.ref(future)
    del future
    assert until(lambda: collected(own))


def test_a_batch_is_not_kept(session: qnb.Session) -> None:
    batch = session.map(abs, range(100))
    assert batch.results(SECONDS)[3] == 3
    reference = weakref.ref(batch)
    del batch
    assert until(lambda: collected(reference))


def test_a_session_is_not_kept(session: qnb.Session, place: str) -> None:
    other = qnb.Session(place, workers=0)
    assert other.submit(abs, -1).result(SECONDS) == 1
    other.close()
    reference = weakref.ref(other)
    del other
    assert until(lambda: collected(reference))
