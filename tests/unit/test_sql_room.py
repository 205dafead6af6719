"""The embedded file stays within its bound, what is young stays in any case, and what it takes is told."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest

from qnb.backends import sql, sql_room
from qnb.backends.sql import SqlBackend
from qnb.message import Stored

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
    assert "oldest values were dropped" in caplog.text
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


def test_who_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backends = [SqlBackend("sqlite:"), SqlBackend(f"sqlite:///{tmp_path}/named.db")]
    assert [backend.room and backend.room[1] for backend in backends] == [sql_room.MOST_BYTES, math.inf]
    assert sql.SWEEP_SECONDS <= 60
    for backend in backends:
        backend.close()
