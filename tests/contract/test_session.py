"""Where a Session connects and with what: arguments, environment, the embedded default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qnb
from qnb.registry import partner_url
from qnb.settings import redact
from tests.contract.conftest import KEY, new_place, run_python, until
from tests.services import Services


def test_the_embedded_default(tmp_path: Path) -> None:
    """No argument, no variable, no server: a file in ./.qnb, workers beside the kernel, as many as cores."""
    code = """
import qnb, json, os
with qnb.Session() as s:
    value = s.submit(abs, -3).result(30)
    import time
    while not s.workers.names: time.sleep(0.01)
    print(json.dumps([value, s.broker_url, s.backend_url, s.workers[0]["concurrency"], len(os.sched_getaffinity(0))]))
"""
    done = run_python(code, cwd=tmp_path)
    value, broker, backend, lanes, cores = json.loads(done.stdout)
    assert value == 3
    assert broker == backend == f"sqlite:///{tmp_path}/.qnb/qnb.db" or str(tmp_path) in broker
    assert lanes == cores
    assert (tmp_path / ".qnb" / ".gitignore").read_text() == "*\n"


def test_environment(kind: str, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    place, other = new_place(kind, services), new_place(kind, services)
    monkeypatch.setenv("QNB_BROKER", place)
    with qnb.Session(workers=0) as session:
        assert session.backend_url in (session.broker_url, "rpc:")
        assert session.broker_url.split("?")[0] == redact(place).split("?")[0]
    monkeypatch.setenv("QNB_BACKEND", other if partner_url(other) == other else "memory:")
    with qnb.Session(workers=0) as session:
        assert session.broker_url != session.backend_url
    with qnb.Session("memory://mine", "memory://theirs", workers=0) as session:
        assert (session.broker_url, session.backend_url) == ("memory://mine", "memory://theirs"), "an argument wins"


def test_broker_and_backend_of_different_kinds(services: Services) -> None:
    """Any broker with any backend: what they share no round trip for is done in steps."""
    for broker, backend in (("sqlite", "redis"), ("redis", "sqlite")):
        with qnb.Session(new_place(broker, services), new_place(backend, services), workers=1) as session:
            assert session.submit(abs, -1).result(30) == 1
            assert session.map(lambda i: i * i, range(50)).results(30) == [i * i for i in range(50)]
            assert isinstance(session.submit(int, "x").exception(30), ValueError)
            big = b"x" * 2_000_000
            assert session.submit(len, big).result(30) == len(big)


def test_key(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    with qnb.Session("memory://k", workers=0) as session:
        by_environment = session.signer.key_id
    with qnb.Session("memory://k", workers=0, key=KEY) as session:
        assert session.signer.key_id == by_environment
    with qnb.Session("memory://k", workers=0, key="another key than before") as session:
        assert session.signer.key_id != by_environment
        assert "another key" not in repr(session) + repr(vars(session))
    monkeypatch.delenv("QNB_KEY")
    with qnb.Session("memory://k", workers=1) as session:
        assert session.submit(abs, -1).result(10) == 1, "with the per-user file, made on first use"


def test_workers_default(services: Services) -> None:
    with qnb.Session(new_place("redis", services)) as session:
        assert session.workers.names == []
    with qnb.Session("memory://w", workers=3) as session:
        assert until(lambda: session.workers.names)
        assert session.workers[0]["concurrency"] == 3


def test_queue_of_a_session(session: qnb.Session, place: str) -> None:
    with qnb.Session(place, workers=1, queue="special") as special:
        assert special.submit(abs, -2).result(30) == 2
        until(lambda: len(special.workers.names) == 2)
        assert {tuple(row["queues"]) for row in special.workers} == {("qnb",), ("special",)}


def test_current_session() -> None:
    with qnb.Session("memory://c", workers=0) as first:
        assert qnb.current_session() is first
        with qnb.Session("memory://c", workers=0) as second:
            assert qnb.current_session() is second
    assert qnb.current_session() is None


def test_name_and_repr(session: qnb.Session) -> None:
    assert session.broker_url in repr(session)
    with qnb.Session("memory://n", workers=0, name="mine") as named:
        assert named.name == "mine"
    assert "closed" in repr(named)
    named.close()


def test_two_sessions_hear_their_own(session: qnb.Session, sister: qnb.Session) -> None:
    ours, theirs = session.map(abs, range(50)), sister.map(lambda i: -i, range(50))
    assert ours.results(30) == list(range(50))
    assert theirs.results(30) == [-i for i in range(50)]


def test_the_run_goes_on_without_the_kernel(tmp_path: Path) -> None:
    """A script that ends at once has left its task to the workers, which finish it."""
    code = """
import qnb, sys
s = qnb.Session(workers=1)
name = sys.argv[1]
def later():
    open(name, "w").write("done")
s.submit(abs, -1).result(30)
s.submit(later)
"""
    done = run_python(code, str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == "done")
