"""Monitoring and control from a session and from the command line, on each broker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait

import pytest

import qnb
from qnb.brokers.base import PRESENCE_SECONDS, QueueSpec
from tests.contract.conftest import EVERY, ROOT, Gate, new_place, until
from tests.services import Services

BROKERS = EVERY
SECONDS = 20.0


def qnb_command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`qnb …` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "qnb.cli", *arguments],
        capture_output=True, text=True, timeout=30, env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )  # fmt: skip


@pytest.fixture
def shared(kind: str, place: str) -> str:
    """The place, where other processes can reach it."""
    if kind == "memory":
        pytest.skip("no other process reaches memory:")
    return place


def test_workers(session: qnb.Session) -> None:
    workers = session.workers
    assert len(workers) == 1
    (row,) = workers
    assert workers[0] == row
    assert workers.names == [row["worker"]]
    assert row["concurrency"] == 2
    assert row["queues"] == ["qnb"]
    assert row["pool"] in ("process", "thread")
    df = workers.df
    assert df.index.name == "worker"
    assert {"host", "pid", "concurrency", "busy", "done", "failed"} <= set(df.columns)
    assert str(df["started_at"].dt.tz) == "UTC"
    assert row["worker"] in repr(workers)
    assert "<table" in workers._repr_html_()


def test_no_workers(place: str) -> None:
    with qnb.Session("memory://nobody-works-here", workers=0) as empty:
        assert len(empty.workers) == 0
        assert "qnb worker" in repr(empty.workers)
        assert "qnb worker" in empty.workers._repr_html_()
        assert empty.control.ping() == {}
        assert len(empty.workers.df) == 0


def test_ping_and_to(session: qnb.Session) -> None:
    (name,) = session.workers.names
    assert session.control.ping() == {name: "pong"}
    assert session.control.ping(to=[name]) == {name: "pong"}
    assert session.control.ping(to=["nobody"], timeout=0.05) == {}
    assert session.control.ping(to=[name, "nobody"], timeout=0.3) == {name: "pong"}


def test_stats_and_conf(session: qnb.Session) -> None:
    before = next(iter(session.control.stats().values()))["tasks"]
    session.map(lambda i: 1 // i, [0, 1, 2]).wait(SECONDS)
    (stats,) = until(lambda: [s for s in session.control.stats().values() if s["tasks"]["failed"] > before["failed"]])
    assert stats["tasks"]["done"] == before["done"] + 2
    assert stats["tasks"]["failed"] == before["failed"] + 1
    assert stats["uptime"] > 0
    assert len(stats["lanes"]) == 2
    (conf,) = session.control.conf().values()
    assert conf["broker"] == session.broker_url
    assert conf["backend"] == session.backend_url
    assert conf["queues"] == ["qnb"]
    assert conf["key_id"] == session.signer.key_id


def test_active_and_reserved(session: qnb.Session, gate: Gate) -> None:
    def a_name_to_find(i: int) -> object:
        return wait(i)

    wait = gate.task
    batch = session.map(a_name_to_find, range(4), chunksize=4)
    gate.wait(2)
    (rows,) = until(lambda: [rows for rows in session.control.active().values() if len(rows) == 2])
    assert {row["id"] for row in rows} == {batch[0].id, batch[1].id}
    assert all("a_name_to_find" in row["name"] and row["seconds"] >= 0 and row["pid"] for row in rows)
    (waiting,) = session.control.reserved().values()
    assert {row["id"] for row in waiting} == {batch[2].id, batch[3].id}
    gate.open()
    batch.results(SECONDS)
    assert until(lambda: list(session.control.active().values()) == [[]])
    assert any("a_name_to_find" in name for names in session.control.registered().values() for name in names)
    assert list(session.control.scheduled().values()) == [[]]


def test_revoke(session: qnb.Session, blocked: Gate) -> None:
    future, other = session.submit(abs, -1), session.submit(abs, -2)
    session.flush()
    (reply,) = session.control.revoke(future.id).values()
    assert reply == {"running": []}
    assert any(
        future.id in spans or future.id.rpartition(":")[0] in str(spans) for spans in session.control.revoked().values()
    )
    blocked.open()
    assert other.result(SECONDS) == 2
    with pytest.raises(CancelledError):
        future.result(SECONDS)


def test_revoke_what_runs(session: qnb.Session, gate: Gate) -> None:
    future = session.submit(gate.task, 1)
    gate.wait()
    until(future.running)
    (reply,) = session.control.revoke([future.id]).values()
    assert reply == {"running": [future.id]}, "it goes on"
    session.control.revoke(future.id, terminate=True)
    with pytest.raises(CancelledError):
        future.result(SECONDS)


def test_wrong_requests(session: qnb.Session) -> None:
    (reply,) = session.control.ask("explode", {}).values()
    assert "no command 'explode'" in reply["error"]
    (reply,) = session.control.ask("pool_grow", {"m": 1}).values()
    assert "TypeError" in reply["error"]
    (reply,) = session.control.revoke("no id").values()
    assert "not a task id" in reply["error"]
    assert session.submit(abs, -1).result(SECONDS) == 1


def test_grow_and_shrink(session: qnb.Session, gates: object) -> None:
    (name,) = session.workers.names
    assert session.control.pool_grow(2) == {name: {"concurrency": 4}}
    until(lambda: len(session.control.stats()[name]["lanes"]) == 4)
    assert session.control.pool_shrink(2) == {name: {"concurrency": 2}}
    session.map(lambda i: i, range(20)).results(SECONDS)
    until(lambda: len(session.control.stats()[name]["lanes"]) == 2)
    assert session.control.pool_shrink(100) == {name: {"concurrency": 1}}, "one stays"
    assert session.submit(abs, -1).result(SECONDS) == 1
    assert session.control.pool_grow(1) == {name: {"concurrency": 2}}


def test_pause_and_resume(session: qnb.Session) -> None:
    (name,) = session.workers.names
    assert session.control.pause("qnb") == {name: {"queues": ["qnb"], "paused": ["qnb"]}}
    until(lambda: session.workers[0]["paused"] == ["qnb"])
    future = session.submit(abs, -1)
    assert not wait([future], 0.5).done
    assert session.control.resume("qnb") == {name: {"queues": ["qnb"], "paused": []}}
    assert future.result(SECONDS) == 1
    (reply,) = session.control.pause("nobody serves it").values()
    assert "does not serve queue 'nobody serves it'" in reply["error"]


def test_consumers_come_and_go(session: qnb.Session) -> None:
    (name,) = session.workers.names
    elsewhere = session.task(queue="elsewhere")(abs)
    future = elsewhere.submit(-1)
    assert not wait([future], 0.3).done
    assert session.control.add_consumer("elsewhere") == {name: {"queues": ["qnb", "elsewhere"], "paused": []}}
    assert future.result(SECONDS) == 1
    until(lambda: session.workers[0]["queues"] == ["qnb", "elsewhere"])
    assert session.control.cancel_consumer("elsewhere") == {name: {"queues": ["qnb"], "paused": []}}
    future = elsewhere.submit(-2)
    assert not wait([future], 0.5).done
    assert session.submit(abs, -3).result(SECONDS) == 3, "the other queue goes on"
    session.control.add_consumer("elsewhere")
    assert future.result(SECONDS) == 2
    session.control.cancel_consumer("elsewhere")


def test_rate_limit(session: qnb.Session) -> None:
    def rarely(i: int) -> int:
        return i

    name = rarely.__qualname__
    session.submit(rarely, 0).result(SECONDS)
    (reply,) = session.control.rate_limit(name, "5/s").values()
    assert reply["rates"] == {name: 5.0}
    begun = time.monotonic()
    batch = session.map(rarely, range(8))
    assert session.submit(abs, -1).result(SECONDS) == 1, "others are not held back"
    assert until(lambda: [call for calls in session.control.scheduled().values() for call in calls])
    batch.wait(SECONDS)
    assert time.monotonic() - begun > 7 / 5 - 0.25, "a token to begin with, then five a second"
    session.control.rate_limit(name, "1/h")
    held_back = session.map(rarely, range(3))
    assert not wait([held_back[2]], 0.5).done
    (reply,) = session.control.rate_limit(name, "0").values()
    assert reply["rates"] == {}
    assert held_back.results(SECONDS) == [0, 1, 2]
    (reply,) = session.control.rate_limit(name, "often").values()
    assert "'10/s'" in reply["error"]


def test_the_rate_is_kept_and_reached(session: qnb.Session) -> None:
    """Also where each call is a message of its own, most of which go back to the queue meanwhile."""

    def steady(i: int) -> int:
        return i

    session.submit(steady, 0).result(SECONDS)
    count, rate, limited = 45, 8.0, time.time()
    session.control.rate_limit(steady.__qualname__, f"{rate:g}/s")
    begun = time.time()
    batch = session.map(steady, range(count), chunksize=1)
    assert batch.results(SECONDS) == list(range(count))
    last = batch.df["started_at"].max().timestamp()
    assert last - limited >= (count - 1) / (rate * 1.02), "a token to begin with"
    assert last - begun <= count / (rate * 0.6), "a busy machine may be late"


def test_time_limit(session: qnb.Session, gate: Gate, kind: str) -> None:
    if kind == "memory":
        pytest.skip("a thread cannot be killed")
    name = gate.task.__qualname__
    future = session.submit(gate.task, 1)
    gate.wait()
    (reply,) = session.control.time_limit(name, hard=0.2).values()
    assert reply["hard"] == {name: 0.2}
    with pytest.raises(qnb.TaskTimeout, match=r"0\.2 s"):
        future.result(SECONDS)
    (reply,) = session.control.time_limit(name).values()
    assert reply["hard"] == {}


def test_a_revocation_outlives_the_workers(kind: str, services: Services) -> None:
    """Told while nobody is there, honoured by a worker that starts later."""
    if kind == "memory":
        pytest.skip("a worker of another session cannot reach it")
    url = new_place(kind, services)
    with qnb.Session(url, f"sqlite:///{services.folder()}/results.db", workers=0) as session:
        never, other = session.submit(abs, -1), session.submit(abs, -2)
        session.flush()
        assert session.control.revoke(never.id) == {}
        with worker(url, QNB_BACKEND=session.backend_url):
            assert other.result(SECONDS) == 2
            with pytest.raises(CancelledError):
                never.result(SECONDS)


def test_presence(kind: str, services: Services) -> None:
    """A worker is seen within PRESENCE_SECONDS of its start, and no longer after its kill -9."""
    if kind == "memory":
        pytest.skip("no other process reaches it")
    url = new_place(kind, services)
    with qnb.Session(url, workers=0) as session, worker(url) as process:
        until(lambda: session.workers.names == ["presence"], PRESENCE_SECONDS)
        process.kill()
        until(lambda: session.workers.names == [], PRESENCE_SECONDS + 0.5)


def test_an_event_stream(session: qnb.Session) -> None:
    (name,) = session.workers.names
    with session.events() as events:
        until(lambda: session.map(lambda i: 1 // i, [0, 1]).wait(SECONDS) and len(events.df) >= 2)
        first = next(iter(events))
        df = events.df
        assert first.worker == name
        assert {"task-done", "task-failed"} <= set(df["kind"])
        assert list(df.columns) == ["at", "kind", "worker", "run", "first", "count", "name", "detail"]
        assert str(df["at"].dt.tz) == "UTC"
        assert {name.rpartition(".")[2] for name in df["name"]} == {"<lambda>"}
    assert list(session.events(seconds=0)) == []


def test_an_event_of_a_call_that_goes_on_has_its_name(session: qnb.Session) -> None:
    def slow(index: int) -> int:
        time.sleep(0.5)
        return index

    with session.events() as events:
        until(lambda: session.submit(slow, 1).result(SECONDS) and "task-running" in set(events.df["kind"]))
        df = events.df
        assert {name.rpartition(".")[2] for name in df["name"][df["kind"] == "task-running"]} == {"slow"}


@pytest.mark.alone
def test_features_are_measured(session: qnb.Session) -> None:
    """And nothing is left behind, not even what an earlier probe could not remove."""
    before, now = set(session.broker.queues()), int(time.time())
    old, young = f"probe-{now - 3600:x}-abcd-purge", f"probe-{now:x}-abcd-purge"
    for queue in (old, young):
        session.broker.declare(QueueSpec(queue))
    assert {old, young} <= set(session.broker.queues())
    table = session.features(probe=True)
    df = table.df
    left = set(session.broker.queues())
    session.broker.remove(young)
    assert list(df.columns) == ["support", "worked", "seconds", "said"]
    assert set(df["support"]) <= {"native", "built", "none"}
    assert not [f"{feature}: {said}" for feature, said in df[df["worked"] == False]["said"].items()]  # noqa: E712
    assert {"works" in repr(table), "<table" in table._repr_html_()} == {True}
    assert left == {*before, young}, "\n".join(df["said"])  # somebody may be using the young one
    assert table.limits == session.broker.features.limits
    assert session.features().df["worked"].isna().all()


# The command line -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(url: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process named "presence", once it says that it runs."""
    command = [sys.executable, "-m", "qnb.cli", "worker", "--concurrency", "1", "--name", "presence"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "QNB_BROKER": url} | env
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stderr is not None
        assert "presence" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_doctor(shared: str, session: qnb.Session, kind: str, services: Services) -> None:
    done = qnb_command("doctor", shared)
    assert done.returncode == 0, done.stdout
    assert "All is well" in done.stdout
    session.control.pause("qnb")
    until(lambda: session.workers[0]["paused"])
    done = qnb_command("doctor", shared)
    session.control.resume("qnb")
    assert (done.returncode, "paused" in done.stdout.splitlines()[-1]) == (1, True)
    until(lambda: not session.workers[0]["paused"])
    done = qnb_command("doctor", shared, QNB_KEY="quite another key than theirs")
    assert (done.returncode, "another key" in done.stdout.splitlines()[-1]) == (1, True)
    done = qnb_command("doctor", shared, "--queue", "elsewhere")
    assert (done.returncode, "serve only qnb" in done.stdout.splitlines()[-1]) == (1, True)
    empty = new_place(kind, services)
    with qnb.Session(empty, workers=0) as waiting:
        future = waiting.submit(abs, -1)
        waiting.flush()
        done = qnb_command("doctor", empty)
        assert future.cancel()
    assert (done.returncode, "no worker is there" in done.stdout.splitlines()[-1]) == (1, True)


@pytest.mark.alone
def test_brokers_command(services: Services) -> None:
    """The same probe as above, printed: one broker's will do."""
    done = qnb_command("brokers", new_place("redis", services), "--probe")
    assert done.returncode == 0, done.stdout
    assert "FAILS" not in done.stdout
    assert "confirmed publish" in done.stdout


def test_inspect(session: qnb.Session, shared: str) -> None:
    (name,) = session.workers.names
    done = qnb_command("inspect", "ping", shared)
    assert (done.returncode, json.loads(done.stdout)) == (0, {name: "pong"})
    done = qnb_command("inspect", "stats", "--to", name, QNB_BROKER=shared)
    assert done.returncode == 0
    assert json.loads(done.stdout)[name]["concurrency"] == 2


def test_control(session: qnb.Session, shared: str) -> None:
    (name,) = session.workers.names
    assert json.loads(qnb_command("control", "pool_grow", shared, "--number", "1").stdout) == {name: {"concurrency": 3}}
    assert json.loads(qnb_command("control", "pool_shrink", shared).stdout) == {name: {"concurrency": 2}}
    done = qnb_command("control", "revoke", shared, "--task", "r-0:1")
    assert (done.returncode, json.loads(done.stdout)) == (0, {name: {"running": []}})
    failed = qnb_command("control", "revoke", shared, "--task", "no id")
    assert failed.returncode == 1
    assert "not a task id" in failed.stdout
    assert qnb_command("control", "revoke", shared).returncode == 2


def test_nobody_answers(tmp_path: object) -> None:
    done = qnb_command("inspect", "ping", f"sqlite:///{tmp_path}/empty.db")
    assert done.returncode == 69
    assert json.loads(done.stdout) == {}
    assert "no worker answered" in done.stderr


def test_another_key_gets_no_answer(session: qnb.Session, shared: str) -> None:
    done = qnb_command("inspect", "ping", shared, "--timeout", "0.3", QNB_KEY="quite another key than theirs")
    assert done.returncode == 69


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["inspect"], ["inspect", "nonsense"], ["worker", "--pool", "fibre"]], ids=str
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = qnb_command(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["worker", "inspect", "queues", "purge", "events", "doctor", "brokers"])
def test_a_command_that_fails(command: str) -> None:
    more = ["ping"] if command == "inspect" else []
    done = qnb_command(command, *more, "nosuch://user:S3KR3T@host")
    assert done.returncode == 1
    assert done.stderr.startswith(f"qnb {command}: no ")
    assert "Traceback" not in done.stderr
    assert "S3KR3T" not in done.stderr


def test_help_and_version() -> None:
    done = qnb_command("--help")
    assert done.returncode == 0
    for command in ("worker", "inspect", "control", "events", "queues", "purge", "key"):
        assert f"  {command} " in done.stdout
        assert qnb_command(command, "--help").returncode == 0
    assert qnb_command("--version").stdout == f"qnb {qnb.__version__}\n"


def test_key() -> None:
    first, second = (qnb_command("key").stdout.strip() for _ in range(2))
    assert len(first) == 64
    assert first != second


def test_queues_and_purge(session: qnb.Session, shared: str) -> None:
    session.task(queue="only-here")(abs).map(range(3), chunksize=1)
    session.flush()
    lines = dict(line.split("\t") for line in qnb_command("queues", shared).stdout.splitlines())
    assert lines["only-here"] == ("?" if session.broker.depth("only-here") is None else "3")
    assert qnb_command("purge", shared, "--queue", "only-here").stdout == "3 messages dropped from only-here\n"
    assert session.broker.depth("only-here") in (0, None)
    assert qnb_command("purge", shared, "--queue", "not-there").returncode == 0


@contextlib.contextmanager
def watching(place: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qnb.cli", "events", place], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_events(session: qnb.Session, shared: str) -> None:
    """Whoever watches is told, from a moment after he began."""
    with watching(shared) as process:
        assert process.stdout is not None
        stop = False
        import threading

        def keep_working() -> None:
            while not stop:
                session.map(lambda i: 1 // i, [0, 1]).wait(SECONDS)

        thread = threading.Thread(target=keep_working)
        thread.start()
        try:
            seen = {}
            while not {"task-done", "task-failed"} <= set(seen):
                event = json.loads(process.stdout.readline())
                seen[event["kind"]] = event
        finally:
            stop = True
            thread.join()
    assert seen["task-done"]["worker"] in session.workers.names
    assert seen["task-done"]["run"].startswith(session.id)


def test_worker_command(shared: str, kind: str) -> None:
    """SIGTERM ends it well; `control shutdown` too."""
    command = [sys.executable, "-m", "qnb.cli", "worker", shared, "--queues", "a,b", "--concurrency", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with qnb.Session(shared, workers=0, queue="b") as other:
        for number, end in enumerate(("terminate", "shutdown")):
            name = f"mine{number}"
            process = subprocess.Popen([*command, "--name", name], stderr=subprocess.PIPE, text=True, env=env)
            assert process.stderr is not None
            assert name in process.stderr.readline()
            assert other.submit(abs, -3).result(SECONDS) == 3
            if end == "terminate":
                process.terminate()
            else:
                assert other.control.shutdown(to=[name]) == {name: "ok"}
            assert process.wait(SECONDS) == 0
            process.communicate()
            until(lambda name=name: name not in other.workers.names)
