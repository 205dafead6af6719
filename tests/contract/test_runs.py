"""Runs belong to the backend: listed, attached from another session, cancelled and retried there."""

from __future__ import annotations

import contextlib
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.errors import StorageFull
from qnb.message import RunRecord
from tests.contract.conftest import Gate, run_python, until

SECONDS = 20.0
COLUMNS = [
    "kind", "name", "version", "calls", "done", "failed", "cancelled", "lost", "open", "created_at", "session",
]  # fmt: skip


def halve(x: int, fail_at: int = -1) -> float:
    if x == fail_at:
        raise ValueError("as asked")
    return x / 2


def test_runs(session: qnb.Session) -> None:
    batch = session.map(lambda i: 1 // i, [0, 1, 2])
    batch.wait(SECONDS)
    sweep = session.sweep(halve, {"x": [1, 2]}, fail_at=2)
    sweep.wait(SECONDS)
    futures = [session.submit(abs, -i) for i in range(5)]
    assert [future.result(SECONDS) for future in futures] == list(range(5))
    run = futures[0].id.rpartition(":")[0]
    df = _listed(session, batch.run, sweep.run, run)
    assert list(df.columns) == COLUMNS
    assert (df.index.name, str(df["created_at"].dt.tz)) == ("run", "UTC")
    row = df.loc[batch.run]
    assert (row["kind"], row["calls"], row["done"], row["failed"], row["open"]) == ("map", 3, 2, 1, 0)
    assert "<lambda>" in row["name"]
    assert (df.loc[sweep.run]["kind"], df.loc[sweep.run]["done"], df.loc[sweep.run]["failed"]) == ("sweep", 1, 1)
    assert (df.loc[run]["kind"], df.loc[run]["name"], df.loc[run]["session"]) == ("submits", "abs", session.name)
    assert len(session.runs(limit=1)) == 1


def test_own_submits_attached_again_and_again_are_followed_once(session: qnb.Session, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    future = session.submit(gate.task, 1)
    run = future.id.rpartition(":")[0]
    _listed(session, run)
    found = [session.attach(run) for _ in range(5)]
    names = [thread.name for thread in threading.enumerate()]
    gate.open()
    assert names.count(f"qnb-follow-{run}") == 1
    assert all(batch.wait(SECONDS) for batch in found)
    assert future.result(SECONDS) == found[0][future._index].result(SECONDS)


def test_the_results_of_runs_that_are_over_are_read_once(
    session: qnb.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, gate = session.map(halve, range(4)), Gate(tmp_path)
    over.wait(SECONDS)
    open_run = session.map(gate.task, [1])
    before = _listed(session, over.run, open_run.run)
    read: list[str] = []
    fetch = session.backend.fetch_many
    monkeypatch.setattr(session.backend, "fetch_many", lambda run, *spans: (read.append(run), fetch(run, *spans))[1])
    again = session.runs()
    gate.open()
    open_run.wait(SECONDS)
    assert over.run not in read
    assert open_run.run in read
    assert list(again.loc[over.run]) == list(before.loc[over.run])
    assert again.loc[open_run.run]["open"] == 1
    assert session.runs().loc[open_run.run]["done"] == 1, "what goes on is read anew"


def _listed(session: qnb.Session, *runs: str) -> Any:
    until(lambda: set(runs) <= set(session.runs().index))
    return session.runs()


def test_attach_to_what_is_over(session: qnb.Session, sister: qnb.Session) -> None:
    batch = session.map(halve, range(10), [3] * 10)
    batch.wait(SECONDS)
    again = sister.attach(batch.run)
    assert again.wait(SECONDS)
    assert (len(again), again.run, again.name) == (10, batch.run, batch.name)
    assert again.counts == batch.counts == {"done": 9, "failed": 1}
    ours, theirs = batch.df, again.df
    for column in ("x", "fail_at", "state", "error", "started_at", "finished_at", "worker", "task_id"):
        assert list(ours[column].astype(str)) == list(theirs[column].astype(str)), column
    assert [again[i].result() for i in range(3)] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="as asked"):
        again[3].result()
    assert again.source is not None
    assert "def halve" in again.source
    assert list(again.errors["error"]) == ["ValueError"]


def test_attach_goes_on_live(session: qnb.Session, sister: qnb.Session, gate: Gate) -> None:
    """What ends after the attaching is told at once, not found by looking now and then."""
    batch = session.map(gate.task, range(5))
    gate.wait(2)
    again = sister.attach(batch.run)
    assert again.counts.get("done", 0) == 0
    gate.open()
    assert again.wait(SECONDS)
    assert again.results() == batch.results(SECONDS) == list(range(5))
    assert sister.collector.pending == 0


def test_cancel_and_retry_from_there(session: qnb.Session, sister: qnb.Session, gates: Callable[[], Gate]) -> None:
    gate = gates()
    batch = session.map(gate.task, range(6), chunksize=1)
    gate.wait(2)
    again = sister.attach(batch.run)
    assert again.cancel() >= 1
    gate.open()
    assert again.wait(SECONDS)
    assert batch.wait(SECONDS)
    assert again.counts == batch.counts
    failing = session.map(lambda i: 1 // i, [0, 1])
    failing.wait(SECONDS)
    retried = sister.attach(failing.run).retry()
    assert (len(retried), retried.wait(SECONDS), retried.counts) == (1, True, {"failed": 1})
    assert _listed(sister, retried.run).loc[retried.run]["kind"] == "retry"


def test_attach_to_a_stream_of_submits(session: qnb.Session, sister: qnb.Session) -> None:
    futures = [session.submit(halve, i) for i in range(5)]
    assert [future.result(SECONDS) for future in futures] == [0.0, 0.5, 1.0, 1.5, 2.0]
    run = futures[0].id.rpartition(":")[0]
    for who in (sister, session):
        until(lambda: set(session.runs().index) >= {run} and session.runs().loc[run]["calls"] >= 5)
        batch = who.attach(run)
        assert batch.wait(SECONDS)
        assert batch.results()[-5:] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert session.submit(halve, 9).result(SECONDS) == 4.5, "the stream itself goes on"


def test_the_same_session_gets_the_same_batch(session: qnb.Session, gate: Gate) -> None:
    batch = session.map(gate.task, range(3))
    assert session.attach(batch.run) is batch
    gate.open()
    batch.results(SECONDS)


def test_forget(session: qnb.Session) -> None:
    batch = session.map(halve, range(3))
    batch.results(SECONDS)
    _listed(session, batch.run)
    session.forget(batch.run)
    assert batch.run not in session.runs().index
    with pytest.raises(qnb.UnknownTask, match=r"session\.runs\(\) lists"):
        session.attach(batch.run)


def test_another_kernel(kind: str, session: qnb.Session, place: str) -> None:
    """A process that knows nothing of the function: it comes with the run."""
    if kind == "memory":
        pytest.skip("no other process reaches memory:")
    batch = session.map(lambda i: 1 // i if i else {}["no"], range(4))
    batch.wait(SECONDS)
    code = """
import json, qnb, sys
with qnb.Session(sys.argv[1], workers=0) as session:
    batch = session.attach(sys.argv[2])
    batch.wait(20)
    retried = batch.retry()
    retried.wait(20)
    print(json.dumps([dict(batch.counts), dict(retried.counts), batch.source]))
"""
    done = run_python(code, place, batch.run)
    assert done.returncode == 0, done.stderr
    counts, retried, source = json.loads(done.stdout)
    assert (counts, retried) == ({"done": 3, "failed": 1}, {"failed": 1})
    assert "1 // i if i else" in source


def test_a_run_of_another_key_is_listed_and_not_opened(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/tasks.db"
    with qnb.Session(place, workers=1, key="the key of one of two people") as one:
        batch = one.map(abs, range(3))
        batch.results(SECONDS)
        _listed(one, batch.run)
        with qnb.Session(place, workers=0, key="the key of the other of them") as two:
            assert two.runs().loc[batch.run]["version"] == "another key"
            with pytest.raises(qnb.QnbError, match="the same key"):
                two.attach(batch.run)


def test_a_key_runs_once(session: qnb.Session, sister: qnb.Session, tmp_path: Path) -> None:
    """Whoever submits with the same key gets the first one's outcome, whatever is submitted."""
    log = str(tmp_path / "ran")

    def work(value: int) -> int:
        with open(log, "a") as file:
            file.write(f"{value}\n")
        return value

    once = session.task(work).options(key=f"report of {tmp_path}")
    first = once.submit(1)
    others = [once.submit(2), sister.task(work).options(key=f"report of {tmp_path}").submit(value=3)]
    assert [future.result(SECONDS) for future in (first, *others)] == [1, 1, 1]
    assert Path(log).read_text() == "1\n"
    assert {future.id for future in (first, *others)} == {first.id}
    assert once.options(key=f"another of {tmp_path}").submit(4).result(SECONDS) == 4


def test_a_key_keeps_a_failure_too(session: qnb.Session, tmp_path: Path) -> None:
    failing = session.task(halve).options(key=f"failure of {tmp_path}")
    for future in (failing.submit(1, 1), failing.submit(2, 1)):
        with pytest.raises(ValueError, match="as asked"):
            future.result(SECONDS)


def test_a_key_whose_first_submit_never_came(
    session: qnb.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that died between taking the key and submitting: the next one submits."""
    from qnb.session import keyed

    monkeypatch.setattr(keyed, "TAKEN_SECONDS", 0.2)
    run = keyed._claim(session, str(tmp_path), session.new_run())
    future = session.task(abs).options(key=str(tmp_path)).submit(-5)
    assert (future.result(SECONDS), future.id) == (5, f"{run}:0")


def test_a_map_that_is_not_sent_to_its_end(session: qnb.Session, sister: qnb.Session) -> None:
    """Its last call cannot travel, and many were sent before: none of them stays open for those who attach."""
    with pytest.raises(qnb.CannotPickle, match="lock"):
        session.map(halve, [*range(200), threading.Lock()], chunksize=1)
    run = session.newest_run()
    assert run is not None
    batch = sister.attach(run)
    assert batch.wait(SECONDS)
    assert set(batch.counts) <= {"done", "cancelled"}
    assert batch[200].state == "cancelled"
    assert _listed(session, run).loc[run]["open"] == 0


def test_a_run_that_is_forgotten_leaves_no_arguments(session: qnb.Session) -> None:
    batch = session.map(len, ["nobody else's business", "x"])
    assert batch.results(SECONDS) == [22, 1]
    arguments = f"{batch.run}-args-0"
    until(lambda: session.backend.get_blob(arguments))
    until(lambda: session.backend.load_run(batch.run))
    session.forget(batch.run)
    assert session.backend.get_blob(arguments) is None
    assert session.backend.load_run(batch.run) is None


def test_what_was_cancelled_and_forgotten_does_not_run(tmp_path: Path) -> None:
    """By a worker that comes later."""
    place = f"sqlite:///{tmp_path}/q.db"
    with contextlib.closing(qnb.Session(place, workers=0)) as first:
        batch = first.map(lambda name: Path(name).touch(), [str(tmp_path / "ran")])
        until(lambda: first.broker.depth("qnb"))
        assert batch.cancel() == 1
        first.forget(batch.run)
    with qnb.Session(place, workers=1) as second:
        assert second.submit(abs, -1).result(SECONDS) == 1
    assert not (tmp_path / "ran").exists()


def test_a_key_is_free_again_when_its_run_is_forgotten(session: qnb.Session, tmp_path: Path) -> None:
    once = session.task(abs).options(key=f"forgotten of {tmp_path}")
    first = once.submit(-1)
    assert first.result(SECONDS) == 1
    other = session.submit(abs, -3)
    session.forget(other.id.rpartition(":")[0])
    assert once.submit(-2) is first
    session.forget(first.id.rpartition(":")[0])
    began = time.monotonic()
    again = once.submit(-2)
    assert again.result(SECONDS) == 2
    assert again.id != first.id
    assert time.monotonic() - began < 5, "nobody waits for a run that was forgotten"


@pytest.mark.parametrize("fault", [StorageFull, qnb.BackendUnavailable, KeyboardInterrupt])
def test_a_key_is_free_again_when_its_submit_cannot_be_sent(
    session: qnb.Session,
    sister: qnb.Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[BaseException],
) -> None:
    """Whoever comes next would wait for a call that nobody has."""

    def refuse(_envelopes: object) -> None:
        raise fault("as asked")

    once = session.task(abs).options(key=f"unsent of {tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(session.broker, "publish_many", refuse)
        with pytest.raises(fault, match="as asked"):
            once.submit(-1).result(SECONDS)
    assert sister.task(abs).options(key=f"unsent of {tmp_path}").submit(-2).result(SECONDS) == 2
    assert once.submit(-3).result(SECONDS) == 2


@pytest.mark.parametrize("step", ["store_many", "save_run"])
def test_a_key_is_free_again_after_ctrl_c(
    session: qnb.Session, sister: qnb.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Which comes when the key is taken, or when the run is written down, and nothing is sent yet."""
    from qnb.session import keyed

    do = getattr(session.backend, step)

    def interrupt(*given: Any) -> None:
        monkeypatch.setattr(session.backend, step, do)
        do(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.backend, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.task(abs).options(key=f"interrupted in {tmp_path}").submit(-1)
    monkeypatch.setattr(keyed, "appears", lambda *_: pytest.fail("the key is still taken"))
    assert sister.task(abs).options(key=f"interrupted in {tmp_path}").submit(-2).result(SECONDS) == 2
    newest = session.runs(limit=2)
    assert newest["open"].sum() == 0, "nobody waits for what was never sent"


def test_a_key_of_two_threads_at_once(session: qnb.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes when the run of the first is written down, and not sent yet: there is one batch of it."""
    written, go = threading.Event(), threading.Event()
    save = session.backend.save_run

    def save_slowly(record: RunRecord) -> None:
        save(record)
        written.set()
        assert go.wait(SECONDS)

    monkeypatch.setattr(session.backend, "save_run", save_slowly)
    once = session.task(abs).options(key=f"two threads of {tmp_path}")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once.submit, -1)
        assert written.wait(SECONDS)
        second = once.submit(-2)
        go.set()
        assert first.result(SECONDS) is second
    assert second.result(SECONDS) == 1


def test_large_results_of_keys_do_not_stay(session: qnb.Session, tmp_path: Path) -> None:
    """Small ones do, for their futures are to be the same again."""
    small = session.task(abs).options(key=f"small of {tmp_path}")
    first = small.submit(-1)
    assert first.result(SECONDS) == 1
    large = session.task(bytes).options(key=f"large of {tmp_path}").submit(1 << 20)
    assert len(large.result(SECONDS)) == 1 << 20
    kept = weakref.ref(large)
    del large
    second = session.task(abs).options(key=f"after those of {tmp_path}").submit(-2)
    assert second.result(SECONDS) == 2
    gc.collect()
    assert kept() is None
    assert small.submit(-1) is first


def test_wrong_keys(session: qnb.Session) -> None:
    with pytest.raises(qnb.ConfigurationError, match="names one call"):
        session.map(session.task(abs).options(key="one"), range(3))
    with pytest.raises(qnb.ConfigurationError, match="give a text"):
        session.task(abs).options(key="")
    with qnb.Session("memory://keys", "rpc:", workers=0) as other, pytest.raises(qnb.Unsupported, match="keeps"):
        other.task(abs).options(key="x").submit(1)
