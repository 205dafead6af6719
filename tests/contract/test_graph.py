"""Futures and batches as arguments: chains, diamonds, fan-in and fan-out; failures and cancels that spread."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import qnb
from tests.contract.conftest import EVERY, Gate, until

BROKERS = EVERY


def inc(value: int) -> int:
    return value + 1


def add(*values: int) -> int:
    return sum(values)


def total(values: list[int]) -> int:
    return sum(values)


def shape(value: Any) -> Any:
    return value


def raises(value: Any) -> Any:
    raise ValueError(f"bad row {value}")


def test_a_diamond(session: qnb.Session) -> None:
    top = session.submit(inc, 0)
    left, right = session.submit(inc, top), session.submit(inc, top)
    assert session.submit(add, left, right).result(60) == 4


def test_a_chain_of_one_function(session: qnb.Session) -> None:
    """Its calls travel in the same frames as those that they wait for."""
    future = session.submit(inc, 0)
    for _ in range(50):
        future = session.submit(inc, future)
    assert future.result(60) == 51


def test_nested_in_containers(session: qnb.Session) -> None:
    one, two = session.submit(inc, 0), session.submit(inc, 1)
    batch = session.map(inc, range(3))
    value = {"list": [one, (two, 7)], "again": one, "batch": batch}
    assert session.submit(shape, value).result(60) == {"list": [1, (2, 7)], "again": 1, "batch": [1, 2, 3]}
    assert session.submit(shape, value=[batch]).result(60) == [[1, 2, 3]]


def test_what_is_over_already(session: qnb.Session) -> None:
    done, batch = session.submit(inc, 1), session.map(inc, range(4))
    done.result(60), batch.results(60)
    assert session.submit(add, done, 1).result(60) == 3
    assert session.submit(total, batch).result(60) == 10


def test_a_map_over_a_batch(session: qnb.Session) -> None:
    """Call by call: each waits for its own."""
    first = session.map(inc, range(40))
    second = session.map(add, first, range(40))
    assert second.results(60) == [2 * i + 1 for i in range(40)]
    assert second.df["values0"].map(type).eq(qnb.Future).all()
    assert session.map(inc, first[:3]).results(60) == [2, 3, 4]


def test_a_sweep_with_a_future_for_all(session: qnb.Session) -> None:
    def scale(x: int, by: int) -> int:
        return x * by

    batch = session.sweep(scale, {"x": [1, 2, 3]}, by=session.submit(inc, 9))
    assert batch.results(60) == [10, 20, 30]
    assert list(batch.df["x"]) == [1, 2, 3]


def test_coroutines_wait_too(session: qnb.Session) -> None:
    async def later(value: int) -> int:
        return value * 2

    assert session.submit(inc, session.submit(later, session.submit(inc, 1))).result(60) == 5


def test_a_failure_fails_what_depends_on_it(session: qnb.Session, blocked: Gate) -> None:
    """At once, and along the whole chain; the cause is the first one's own exception."""
    first = session.submit(raises, 3)
    second = session.submit(inc, first)
    third = session.submit(add, 1, session.submit(inc, second))
    blocked.open()
    error = third.exception(60)
    assert isinstance(error, qnb.DependencyFailed)
    for part in (f"inc ({second.id})", f"raises ({first.id})", "ValueError: bad row 3"):
        assert part in str(error)
    assert str(error).count("not run, since") == 3
    assert isinstance(error.__cause__, ValueError)
    assert third.state == "failed"
    with pytest.raises(qnb.DependencyFailed, match="bad row 3"):
        second.result(60)


def test_the_values_of_a_batch_of_which_one_failed(session: qnb.Session) -> None:
    def odd(value: int) -> int:
        if value == 5:
            raise KeyError("five")
        return value

    batch = session.map(odd, range(9))
    assert "KeyError" in str(session.submit(total, batch).exception(60))
    assert session.submit(total, list(batch[:5])).result(60) == 10


def test_a_retry_is_waited_for(session: qnb.Session, tmp_path: Any) -> None:
    path = str(tmp_path / "tried")

    @session.task(retries=2, backoff=0.05)
    def second_time() -> int:
        import os

        if os.path.exists(path):
            return 5
        open(path, "w").close()
        raise OSError("not yet")

    assert session.submit(inc, second_time.submit()).result(60) == 6


def test_cancel_spreads(session: qnb.Session, blocked: Gate) -> None:
    first = session.submit(inc, 1)
    second = session.submit(inc, first)
    third = session.submit(inc, second)
    assert first.cancel()
    blocked.open()
    with pytest.raises(CancelledError):
        third.result(60)
    assert (second.state, third.state) == ("cancelled", "cancelled")


def test_who_waits_can_be_cancelled(session: qnb.Session, gate: Gate) -> None:
    slow = session.submit(gate.task, 1)
    gate.wait()
    waiting = session.submit(inc, slow)
    session.flush()
    assert waiting.cancel()
    gate.open()
    assert slow.result(60) == 1
    assert waiting.cancelled()


def test_nothing_starts_before_what_it_waits_for(session: qnb.Session, gates: Callable[[], Gate]) -> None:
    """Neither do those that wait keep a lane from those that they wait for."""
    gate, after = gates(), gates()
    slow = session.submit(gate.task, 1)
    waiting = [session.submit(after.task, slow) for _ in range(60)]
    assert session.submit(inc, 1).result(60) == 2
    gate.wait()
    assert not after.started()
    after.open()
    gate.open()
    assert [future.result(60) for future in waiting] == [1] * 60


def test_fan_in(session: qnb.Session, kind: str) -> None:
    count = 10_000 if kind in ("memory", "sqlite", "redis") else 1000
    begun = time.monotonic()
    assert session.submit(total, session.map(inc, range(count))).result(90) == count * (count + 1) // 2
    print(f"fan-in of {count} on {kind}: {time.monotonic() - begun:.2f} s")


def test_celerys_words(session: qnb.Session) -> None:
    task = session.task
    assert qnb.chain(task(add).s(1, 2), task(inc), task(add).s(10)).result(60) == 14
    futures = qnb.group(task(inc).s(number) for number in range(4))
    assert [future.result(60) for future in futures] == [1, 2, 3, 4]
    assert qnb.chord([task(inc).s(1), task(inc).s(2)], task(total)).result(60) == 5
    assert qnb.chord(futures, task(total)).result(60) == 10
    with pytest.raises(qnb.ConfigurationError, match=r"task\.s"):
        qnb.chain(3)  # type: ignore[arg-type]


def test_where_a_future_cannot_travel(session: qnb.Session) -> None:
    future = session.submit(inc, 1)
    with pytest.raises(qnb.CannotPickle, match="give it to submit or map"):
        session.submit(functools.partial(add, future))
    with pytest.raises(qnb.CannotPickle, match="give it to submit or map"):
        session.submit(lambda: future)


def test_a_future_of_another_backend(session: qnb.Session, gate: Gate) -> None:
    with qnb.Session("memory://another-place", workers=1) as other:
        there = other.submit(gate.task, 4)
        with pytest.raises(qnb.ConfigurationError, match="another backend"):
            session.submit(inc, there)
        gate.open()
        there.result(60)
        assert session.submit(inc, there).result(60) == 5, "its value is here, and is sent along"


def test_an_attached_run_can_be_retried(session: qnb.Session, sister: qnb.Session, tmp_path: Any) -> None:
    """What a call referred to is referred to again."""
    if not session.backend.blobs:
        pytest.skip("results that travel keep no arguments")
    path = str(tmp_path / "mended")

    def picky(value: int) -> int:
        import os

        if not os.path.exists(path):
            raise OSError("not yet")
        return value

    batch = session.map(picky, session.map(inc, range(3)))
    assert batch.wait(60)
    assert batch.counts["failed"] == 3
    until(lambda: batch.run in sister.runs().index)
    open(path, "w").close()
    attached = sister.attach(batch.run)
    run = batch[0].id.partition(":")[0].rpartition("-")[0]
    shown = repr(attached.df["value"][1])
    assert "2" in shown or shown.startswith(f"<the value of inc, {run}-"), "a small one that was there was sent along"
    assert attached.retry().results(60) == [1, 2, 3]


def test_a_call_that_was_never_sent(session: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever tell how it ended: whoever refers to it is told at once."""

    def refuse(*_: Any) -> None:
        raise qnb.PayloadTooLarge("too large for this broker")

    monkeypatch.setattr(session.publisher, "_envelope", refuse)
    single, batch = session.submit(inc, 1), session.map(inc, range(3))
    assert isinstance(single.exception(60), qnb.PayloadTooLarge)
    assert batch.wait(60)
    monkeypatch.undo()
    for argument in (single, batch[1], batch, [single]):
        with pytest.raises(qnb.DependencyFailed, match="was never sent: too large"):
            session.submit(shape, argument)
