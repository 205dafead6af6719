"""The embedded file stays within its bound, what is young stays in any case, and what it takes is told."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import time
from pathlib import Path

import pytest

import qnb
from qnb.backends import sql, sql_room
from qnb.backends.schedules import Schedules
from qnb.backends.sql import SqlBackend
from qnb.codec.parts import get_sealed, stored_names
from qnb.codec.signing import Signer
from qnb.message import RunRecord, Stored

MIB = 1 << 20


def fill(backend: SqlBackend, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        backend.put_blob(f"blob{number}", os.urandom(MIB))


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    backend = SqlBackend(f"sqlite:///{tmp_path}/q.db?most={20 * MIB}")
    monkeypatch.setattr(sql_room, "YOUNG_SECONDS", -1.0)
    backend.store_many([Stored("run", 0, 1, b"x" * MIB)])
    fill(backend, 30)
    monkeypatch.setattr(backend, "_sweep_at", 0.0)
    with caplog.at_level(logging.WARNING):
        backend.put_blob("newest", b"here")
    assert "oldest values and runs were dropped" in caplog.text
    assert backend.get_blob("blob0") is None
    assert backend.get_blob("newest") == b"here"
    room = backend.room
    assert room is not None
    before = room[0]
    for first in (30, 50, 70):
        monkeypatch.setattr(backend, "_sweep_at", 0.0)
        fill(backend, 20, first)
    assert backend.room is not None
    assert backend.room[0] < before + 45 * MIB, "what is free is used again"
    backend.close()


def test_what_is_young_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It may belong to calls that have not run."""
    backend = SqlBackend(f"sqlite:///{tmp_path}/q.db?most={5 * MIB}")
    fill(backend, 10)
    monkeypatch.setattr(backend, "_sweep_at", 0.0)
    with caplog.at_level(logging.WARNING):
        fill(backend, 1, 10)
    assert "of the last hour" in caplog.text
    assert all(backend.get_blob(f"blob{number}") for number in range(11))
    backend.close()


def age(backend: SqlBackend, path: Path, seconds: float) -> None:
    """Time passes for all that is there."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for table in ("outcomes", "extents", "runs", "blobs"):
            connection.execute(f"UPDATE qnb_{table} SET expires_at = expires_at - ?", [seconds])


def test_what_schedules_need_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNB_KEY", "the key of these tests, used for nothing else")
    url = f"sqlite:///{tmp_path}/q.db?most={8 * MIB}"
    with contextlib.closing(qnb.Session(f"sqlite:///{tmp_path}/broker.db", backend=url, workers=0)) as session:
        backend = session.backend
        assert isinstance(backend, SqlBackend)
        session.every("1h", lambda text: len(text), os.urandom(MIB))
        [(_, plan)] = Schedules(backend, session.signer).all()
        needs = [stored_names(key, session.signer)[0] for key in (plan.hash.hex(), str(plan.blob))]
        fill(backend, 10)
        age(backend, tmp_path / "q.db", 2 * sql_room.YOUNG_SECONDS)
        monkeypatch.setattr(backend, "_sweep_at", 0.0)
        backend.put_blob("newest", b"here")
        assert backend.get_blob("blob0") is None
        assert all(backend.get_blob(key) is not None for key in needs)
        assert len(session.schedules()) == 1


def test_what_schedules_need_stays_while_the_key_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored under the old key, and renewed by a worker that seals with the new one."""
    old, new = "the old key of these tests", "the new key of these tests"
    url = f"sqlite:///{tmp_path}/q.db?most={8 * MIB}"
    with contextlib.closing(qnb.Session(f"sqlite:///{tmp_path}/b.db", backend=url, workers=0, key=old)) as session:
        backend = session.backend
        assert isinstance(backend, SqlBackend)
        session.every("1h", lambda text: len(text), os.urandom(MIB))
        worker = Schedules(backend, Signer(f"{new}\n{old}".encode()))
        [(record, plan)] = worker.all()
        age(backend, tmp_path / "q.db", 5 * 86400.0)
        worker.renew(record, plan, time.time())
        fill(backend, 10)
        age(backend, tmp_path / "q.db", 5 * 86400.0)
        monkeypatch.setattr(backend, "_sweep_at", 0.0)
        backend.put_blob("newest", b"here")
        assert backend.get_blob("blob0") is None
        for key in (plan.hash.hex(), str(plan.blob)):
            assert get_sealed(backend.get_blob, session.signer, key) is not None


def test_what_runs_under_way_need_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, now = SqlBackend(f"sqlite:///{tmp_path}/q.db?most={8 * MIB}"), time.time()
    fill(backend, 4)  # of a run that has long been over
    fill(backend, 1, 100)  # long there, and put again by the run under way
    age(backend, tmp_path / "q.db", 4 * 3600.0)
    for run in ("open", "over"):
        backend.save_run(RunRecord(run, "map", "f", 20, now - 2 * 3600.0, "s"))
    fill(backend, 4, 100)
    backend.store_many([Stored("open", 0, 10, b"x" * MIB), Stored("over", 0, 15, b"x" * MIB)])
    backend.store_many([Stored("open", 5, 10, b"y"), Stored("over", 10, 10, b"y")])  # open: 15 of 20
    age(backend, tmp_path / "q.db", 2 * 3600.0)
    monkeypatch.setattr(backend, "_sweep_at", 0.0)
    fill(backend, 1, 200)
    there = [number for number in (*range(4), *range(100, 104)) if backend.get_blob(f"blob{number}") is not None]
    assert there == [100, 101, 102, 103]
    assert len(backend.fetch_many("open")) == 2
    assert not backend.fetch_many("over")
    assert [run.run for run in backend.list_runs()] == ["open"], "a run without its outcomes would seem to be open"
    with caplog.at_level(logging.WARNING):  # where even that is too much, the bound holds
        fill(backend, 8, 201)
        monkeypatch.setattr(backend, "_sweep_at", 0.0)
        fill(backend, 1, 210)
    assert "1 runs that are not over may need them" in caplog.text
    assert backend.get_blob("blob100") is None
    backend.close()


def test_who_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backends = [SqlBackend("sqlite:"), SqlBackend(f"sqlite:///{tmp_path}/named.db")]
    assert [backend.room and backend.room[1] for backend in backends] == [sql_room.MOST_BYTES, math.inf]
    assert sql.SWEEP_SECONDS <= 60
    for backend in backends:
        backend.close()
