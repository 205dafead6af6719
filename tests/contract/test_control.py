"""Monitoring and control from a session and from the command line, on each broker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

import qnb
from tests.contract.conftest import ROOT, Gate, until

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


# The command line -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("command", ["worker", "inspect", "queues", "purge", "events"])
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
    assert lines["only-here"] == "3"
    assert qnb_command("purge", shared, "--queue", "only-here").stdout == "3 messages dropped from only-here\n"
    assert session.broker.depth("only-here") == 0
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
