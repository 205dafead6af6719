"""What is in the way of values on their way: blobs that are gone, disks and stores that are full. Each costs the calls
that it is about, and no others."""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.codec.parts import get_sealed, key_of
from qnb.codec.references import encode_referring
from qnb.errors import BackendUnavailable, StorageFull
from qnb.message import Blob, Frame, Function
from qnb.session.future import is_small
from qnb.worker import dependencies, files, graph, logic, opening, runner
from tests.contract.conftest import Gate, until

LARGE = 6 << 20
_numbers = itertools.count()


def inc(value: int) -> int:
    return value + 1


def size(value: Any) -> int:
    return int(value.nbytes)


def make(fill: int) -> Any:
    import numpy

    return numpy.full(LARGE, fill, dtype="uint8")


@pytest.fixture
def alone(environment: None) -> Iterator[qnb.Session]:
    """A session whose worker is of this process, where things can be broken, and its own."""
    with qnb.Session(f"memory://mishaps-{os.getpid()}-{next(_numbers)}", workers=2) as opened:
        yield opened


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on, so many files of workers cannot be written."""
    left = [0]

    def open_file(path: str, mode: str = "r") -> Any:
        if mode == "wb" and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return builtins.open(path, mode)

    monkeypatch.setattr(files, "open", open_file, raising=False)
    monkeypatch.setattr(opening, "FULL_TIMES", 3)
    monkeypatch.setattr(dependencies, "FULL_LOOKS", 3)

    def fill(times: int) -> None:
        left[0] = times

    return fill


def test_no_room_for_files(alone: qnb.Session, full: Callable[[int], None]) -> None:
    """The calls that need them fail with the remedy, after some tries; the worker goes on."""
    full(1000)
    failing = alone.submit(size, make(1))
    assert alone.submit(inc, 1).result(60) == 2
    error = failing.exception(60)
    assert isinstance(error, StorageFull)
    assert "TMPDIR names another place" in str(error)
    full(0)
    assert alone.submit(size, make(2)).result(60) == LARGE


def test_room_for_files_again(alone: qnb.Session, full: Callable[[int], None]) -> None:
    full(2)
    assert alone.submit(size, make(1)).result(60) == LARGE


def leave_nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lane has made is fetched by who needs it, as from another worker."""
    take_in = files.Files.take_in

    def forgetful(self: files.Files, *arguments: Any) -> Any:
        found = take_in(self, *arguments)
        for key in list(self._sizes):
            del self._sizes[key]
            os.unlink(os.path.join(self.folder, key))
        return found

    monkeypatch.setattr(files.Files, "take_in", forgetful)


@pytest.mark.parametrize("times", [2, 1000])
def test_no_room_for_the_value_of_another(
    alone: qnb.Session, full: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    leave_nothing_at_hand(monkeypatch)
    full(times)
    waiting = alone.submit(size, alone.submit(make, 1))
    if times == 2:
        assert waiting.result(60) == LARGE
    else:
        error = waiting.exception(60)
        assert isinstance(error, qnb.DependencyFailed)
        assert "TMPDIR names another place" in str(error)


def test_a_blob_that_is_gone_fails_who_refers_to_it(alone: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of its frame's other calls."""
    values = [make(fill) for fill in range(4)]
    gone, put = key_of(values[2].data), alone.backend.put_blob
    monkeypatch.setattr(alone.backend, "put_blob", lambda key, data: None if gone in key else put(key, data))
    batch = alone.map(size, values, chunksize=4)
    assert batch.wait(60)
    assert batch.counts == {"done": 3, "failed": 1}
    assert f"no longer has the blob {gone}" in str(batch[2].exception())
    assert batch[3].result() == LARGE


def test_a_blob_that_is_gone_and_an_outcome_that_is_there(alone: qnb.Session) -> None:
    """Of a frame that comes again, nothing is fetched for calls that are over."""
    gone = Blob("0" * 32, 1)
    frame = Frame("run", 3, 3, Function(bytes(16), "f"), encode_referring([(b"", [gone]), b"", (b"", [gone])]))
    bring = alone._workers._worker.opening.bring
    assert bring(frame, [(3, 1), (5, 1)]).refused == []
    assert [(first, count) for first, count, _ in bring(frame, [(3, 1)]).refused] == [(5, 1)]
    assert [(first, count) for first, count, _ in bring(frame, []).refused] == [(3, 1), (5, 1)]


# Calls that wait for what may never come ------------------------------------------------------------------------


@pytest.fixture
def kept(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[qnb.Session]:
    """As `alone`, with a backend that outlives it, of whose runs the worker soon asks whether they are known."""
    monkeypatch.setattr(dependencies, "GONE_SECONDS", 1.0)
    url = f"memory://mishaps-{os.getpid()}-{next(_numbers)}"
    with qnb.Session(url, backend=f"sqlite:///{tmp_path}/results.db", workers=3) as opened:
        yield opened


def run_of(future: qnb.Future) -> str:
    return future.id.rpartition(":")[0]


def forget(session: qnb.Session, future: qnb.Future) -> None:
    until(lambda: session.backend.load_run(run_of(future)))
    session.backend.forget_run(run_of(future))


def test_a_run_that_nobody_knows_any_more(kept: qnb.Session, gates: Callable[[], Gate]) -> None:
    """Who waits for it fails. Who waits for one that is known does not, however long that takes."""
    forgotten, known = gates(), gates()
    first, second = kept.submit(forgotten.task, 1), kept.submit(known.task, 1)
    kept.flush()
    forget(kept, first)
    waiting = kept.submit(inc, second)
    error = kept.submit(inc, first).exception(60)
    assert isinstance(error, qnb.DependencyFailed)
    assert "no longer in sqlite:" in str(error)
    assert "submit it again" in str(error)
    assert not waiting.done()
    again = kept.submit(inc, first)  # the call was to come all the same, and what was told before is not remembered
    forgotten.open()
    assert again.result(60) == 2
    known.open()
    assert waiting.result(60) == 2


def test_a_record_that_is_there_again(kept: qnb.Session, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look that finds none is not enough."""
    load, looks = kept.backend.load_run, list[str]()

    def away_at_first(run: str) -> Any:
        looks.append(run)
        return None if len(looks) % 2 else load(run)

    slow = kept.submit(gate.task, 1)
    waiting = kept.submit(inc, slow)
    kept.flush()
    until(lambda: kept.backend.load_run(run_of(slow)))
    monkeypatch.setattr(kept.backend, "load_run", away_at_first)
    until(lambda: len(looks) > 5)
    assert not waiting.done()
    gate.open()
    assert waiting.result(60) == 2


def test_a_run_whose_arguments_cannot_be_kept_is_known(kept: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(key: str, data: bytes) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(kept.backend, "put_blob", put)
    batch = kept.map(inc, range(3))
    assert batch.results(60) == [1, 2, 3]
    record = until(lambda: kept.backend.load_run(batch.run))
    assert record.count == 3


def test_time_runs_out_while_a_call_waits(alone: qnb.Session, gate: Gate) -> None:
    slow = alone.submit(gate.task, 1)
    waiting = alone.task(expires=0.5)(inc).submit(slow)
    with pytest.raises(qnb.TaskExpired, match="not started within its `expires`"):
        waiting.result(60)
    assert waiting.state == "cancelled"
    assert not slow.done()


def test_many_frames_that_wait_for_one_call(alone: qnb.Session, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend is asked once for what they need, and then from time to time."""
    taken, look, asked = logic.WorkerLogic.received, dependencies.Dependencies._look, list[str]()
    frames = set[int]()

    def received(self: Any, delivery: Any, frame: Any, *rest: Any) -> Any:
        frames.add(frame.first)
        return taken(self, delivery, frame, *rest)

    def asking(self: Any, runs: Any) -> None:
        asked.extend(runs)
        look(self, runs)

    monkeypatch.setattr(logic.WorkerLogic, "received", received)
    monkeypatch.setattr(dependencies.Dependencies, "_look", asking)
    slow = alone.submit(gate.task, 1)
    alone.flush()
    gate.wait()
    begun = time.monotonic()
    batch = alone.map(max, [slow] * 200, range(200), chunksize=1)
    until(lambda: len(frames) == 200, 60)
    assert len(asked) < 10 + (time.monotonic() - begun) / dependencies.LOOK_MOST_SECONDS
    gate.open()
    assert batch.results(60) == [max(1, index) for index in range(200)]


def test_a_backend_that_is_away_while_a_call_waits(
    alone: qnb.Session, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is held, and is run once."""
    look, faults, path = dependencies.Dependencies._look, list[str](), str(tmp_path / "ran")

    def away_at_first(self: Any, runs: Any) -> None:
        if len(faults) < 3:
            faults.extend(runs)
            raise BackendUnavailable("away for a moment")
        look(self, runs)

    def note(value: int) -> int:
        with open(path, "a") as file:
            file.write("ran\n")
        return value

    monkeypatch.setattr(dependencies.Dependencies, "_look", away_at_first)
    waiting = alone.submit(note, alone.submit(gate.task, 1))
    alone.flush()
    until(lambda: len(faults) == 3)
    gate.open()
    assert waiting.result(60) == 1
    until(lambda: not alone._workers._worker.logic.held)
    assert (tmp_path / "ran").read_text() == "ran\n"


@pytest.mark.parametrize("wrap", [lambda batch: batch, lambda batch: batch[1], lambda batch: [batch[0], batch]])
def test_a_small_value_that_is_here_is_sent_along(kept: qnb.Session, wrap: Callable[[qnb.Batch], Any]) -> None:
    """Its run may be forgotten, and expire."""

    def table(rows: int) -> Any:
        import pandas

        return pandas.DataFrame({"a": range(rows), "b": "text"})

    batch = kept.map(table, [10, 20])
    batch.results(60)
    until(lambda: kept.backend.load_run(batch.run))
    kept.forget(batch.run)
    assert "text" in kept.submit(repr, wrap(batch)).result(60)


def test_a_large_value_that_is_here_is_referred_to(kept: qnb.Session) -> None:
    """It went from worker to worker, and does so again."""
    small, large, text = kept.submit(make, 1), kept.map(make, [1, 2]), kept.submit("{:100000}".format, 1)
    for waited in (small, *large[:], text):
        waited.result(60)
    for argument in (small, large, text):
        assert argument.reference(kept.backend) is not None


@pytest.mark.parametrize(
    "value, small",
    [
        ([1] * 1000, True), ([1.5] * 10_000, False), (bytearray(1000), True), (bytearray(70_000), False),
        ([bytearray(30_000)] * 2, True), ([bytearray(30_000) for _ in range(3)], False), (threading.Lock(), False),
    ],
)  # fmt: skip
def test_what_is_small(value: Any, small: bool) -> None:
    assert is_small(value) is small


# Calls whose end cannot be told as it was ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qnb.Session]:
    """A session with a lane of processes: one for coroutine functions, and one for all others."""
    with qnb.Session(f"sqlite:///{tmp_path_factory.mktemp('mishaps')}/queue.db", workers=1) as opened:
        yield opened


def also_async(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function, and a coroutine function that does the same."""

    async def coroutine(*arguments: Any) -> Any:
        return function(*arguments)

    return [function, coroutine]


def test_half_of_a_surrogate_pair_in_what_a_call_says(processes: qnb.Session) -> None:
    """It cannot be sent as it is: the lane died of it, and a coroutine's end was never told."""

    def fail(message: str) -> None:
        raise ValueError(message)

    def note(message: str) -> str:
        qnb.progress(1, 2, message)
        return message

    for each in also_async(fail):
        error = processes.submit(each, "\ud800 row").exception(60)
        assert isinstance(error, ValueError)
        assert str(error) == "\ud800 row"
        assert processes.task(retries=1, backoff=0.01)(each).submit("\ud800").exception(60).args == ("\ud800",)
    for each in also_async(note):
        assert processes.submit(each, "\ud800 row").result(60) == "\ud800 row"


def test_a_result_that_cannot_be_written_down(processes: qnb.Session) -> None:
    """As where the disk is full. The next call is well again."""

    def large(limit: int) -> Any:
        import resource

        import numpy

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return numpy.ones(6 << 20, dtype="uint8")

    for each in also_async(large):
        error = processes.submit(each, 1 << 20).exception(60)
        assert isinstance(error, qnb.CannotPickle)
        assert "TMPDIR names another place" in str(error)
        assert processes.submit(each, -1).result(60).nbytes == 6 << 20


def test_an_end_that_cannot_be_told(processes: qnb.Session) -> None:
    """Whatever the reason, whoever waits is told that much."""

    def spoil(_index: int) -> str:
        """As a library would that changes what it should not."""
        from qnb.worker.runner import Record

        def raising(_record: Record) -> None:
            Record._differs = kept  # type: ignore[method-assign]
            raise RuntimeError("no such thing")

        kept, Record._differs = Record._differs, raising  # type: ignore[assignment, method-assign]
        return "value"

    for each in also_async(spoil):
        error = processes.submit(each, 1).exception(60)
        assert isinstance(error, qnb.CannotPickle)
        assert "the outcome cannot be told: RuntimeError: no such thing" in str(error)
    assert processes.submit(inc, 1).result(60) == 2


# Results that are put aside, and what is in their way ------------------------------------------------------------


def small_or_large(index: int) -> Any:
    import numpy

    return numpy.full(6 << 20, index, dtype="uint8") if index % 3 == 1 else index


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of a frame are run, and reported, at once."""
    monkeypatch.setattr(logic.WorkerLogic, "_size", lambda self, piece, lane: piece.count)
    monkeypatch.setattr(runner, "HOLD_SECONDS", 60.0)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("retries", [0, 1])
def test_a_store_that_is_full_fails_whose_values_it_does_not_take(
    alone: qnb.Session, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    """And none of the calls beside them, whose results travel by themselves or had room. Calls that are tried again cut
    what is reported into several outcomes."""
    put = alone.backend.put_blob

    def full(key: str, data: bytes) -> None:
        if len(data) > 1 << 20 and bytes(data[-3:]) != b"\x01" * 3:
            raise StorageFull("the store takes no more")
        put(key, data)

    def once(index: int) -> Any:
        if index == 2 and qnb.current().attempt == 1 and retries:  # type: ignore[union-attr]
            raise ValueError("not yet")
        return small_or_large(index)

    monkeypatch.setattr(alone.backend, "put_blob", full)
    batch = alone.task(retries=retries, backoff=0.01)(once).map(range(9), chunksize=9)
    assert batch.wait(60)
    assert batch.counts == {"done": 7, "failed": 2}
    for index in (4, 7):
        assert isinstance(batch[index].exception(), StorageFull)
    assert batch[1].result().nbytes == 6 << 20
    assert [batch[index].result() for index in (0, 2, 3, 5, 6, 8)] == [0, 2, 3, 5, 6, 8]
    assert not [name for name in os.listdir(alone._workers._worker.files.folder) if name.startswith("out-")]


@pytest.mark.usefixtures("together")
def test_a_backend_that_is_away_while_results_are_put_aside(
    alone: qnb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken in before is not looked for again."""
    put, puts = alone.backend.put_blob, list[str]()

    def away_once(key: str, data: bytes) -> None:
        if len(data) > 1 << 20:  # a part of a result; each has two
            puts.append(key)
        if len(puts) == 3 and key == puts[-1]:
            raise BackendUnavailable("away for a moment")
        put(key, data)

    alone.submit(inc, 1).result(60)
    monkeypatch.setattr(alone.backend, "put_blob", away_once)
    batch = alone.map(small_or_large, range(9), chunksize=9)
    assert [getattr(value, "nbytes", value) for value in batch.results(60)] == [
        0, 6 << 20, 2, 3, 6 << 20, 5, 6, 6 << 20, 8
    ]  # fmt: skip
    assert len(puts) == 7


def test_files_that_nobody_needs_have_a_bound(alone: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KEPT_BYTES", 20 << 20)
    monkeypatch.setattr(graph, "RECENT_BYTES", 10 << 20)

    def more(before: Any, fill: int) -> Any:
        return make(fill)

    future = alone.submit(make, 0)
    for fill in range(1, 12):
        future = alone.submit(more, future, fill)
    assert future.result(60)[0] == 11
    folder = alone._workers._worker.files.folder
    until(lambda: sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) <= 30 << 20)
    assert alone.submit(size, alone.submit(make, 12)).result(60) == LARGE


def test_what_is_fetched_stays_until_more_is_asked_for(alone: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame that needs it is not known yet, and another thread tidies up."""
    monkeypatch.setattr(files, "KEPT_BYTES", 0)
    alone.submit(size, make(1)).result(60)
    alone.submit(size, make(2)).result(60)
    own = alone._workers._worker.files
    blobs = [alone.aside._put_aside(make(fill), None) for fill in (1, 2)]
    assert own.fetch(blobs[:1]) == {}
    other = threading.Thread(target=own.fetch, args=(blobs[1:],))
    other.start()
    other.join()
    assert os.path.exists(os.path.join(own.folder, blobs[0].buffers[0][0]))
    own.fetch(())
    own.fetch(blobs[1:])
    assert not os.path.exists(os.path.join(own.folder, blobs[0].buffers[0][0]))


def test_what_was_stored_is_trusted_no_longer_than_it_is_kept(environment: None, tmp_path: Path) -> None:
    """Were it taken for stored until the backend had dropped it, each call that has it would fail."""
    backend = f"sqlite:///{tmp_path}/results.db?expires=2"
    large = make(1)
    with qnb.Session(f"memory://mishaps-{os.getpid()}-{next(_numbers)}", backend=backend, workers=1) as opened:
        assert opened.submit(size, large).result(60) == LARGE
        blob = opened.aside._put_aside(large, None)
        until(lambda: get_sealed(opened.backend.get_blob, opened.signer, f"{blob.buffers[0][0]}-0") is None)
        opened._workers._worker.files._sizes.clear()  # a worker that has not got it yet
        assert opened.submit(size, large).result(60) == LARGE
