"""The SQL backend on a file, by both of its ways: the standard library and SQLAlchemy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnb.backends.sql import SqlBackend
from qnb.errors import BackendUnavailable, ConfigurationError, MissingLibrary
from qnb.message import RunRecord, Stored


@pytest.fixture(params=["sqlite", "sqlite+pysqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:///{tmp_path}/qnb.db"


@pytest.fixture
def backend(url: str) -> Iterator[SqlBackend]:
    made = SqlBackend(url)
    yield made
    made.close()


def record(first: int, count: int = 1, data: bytes = b"x") -> Stored:
    return Stored("r", first, count, data)


def test_the_first_outcome_wins_also_within_one_batch(backend: SqlBackend) -> None:
    assert backend.store_many([record(0), record(1)]) == []
    batch = [record(1, 1, b"late"), record(2), record(2, 1, b"twice")]
    assert list(backend.store_many(batch)) == [batch[0], batch[2]]
    assert list(backend.fetch_many("r")) == [record(0), record(1), record(2)]
    assert list(backend.store_many([record(0)])) == [record(0)]


def test_spans_find_what_touches_them(backend: SqlBackend) -> None:
    backend.store_many([record(0, 100), record(50), record(100, 3), record(1000, 1)])
    assert [each.first for each in backend.fetch_many("r", [(60, 1)])] == [0]
    assert [each.first for each in backend.fetch_many("r", [(50, 51)])] == [0, 50, 100]
    assert [each.first for each in backend.fetch_many("r", [(103, 897), (1000, 5)])] == [1000]
    assert list(backend.fetch_many("r", [])) == []
    assert list(backend.fetch_many("other", [(0, 9)])) == []


def test_thousands_of_spans(backend: SqlBackend) -> None:
    backend.store_many([record(i) for i in range(6000)])
    started = time.monotonic()
    found = backend.fetch_many("r", [(i, 1) for i in range(0, 6000, 2)])
    assert [each.first for each in found] == list(range(0, 6000, 2))
    assert time.monotonic() - started < 5


def test_runs(backend: SqlBackend) -> None:
    runs = [RunRecord(f"r{i}", "map", "f", i or None, 1000.0 + i, "s", b"data") for i in range(3)]
    for run in runs:
        backend.save_run(run)
    backend.save_run(RunRecord("r0", "map", "g", 7, 1000.0, "s"))
    assert backend.load_run("r1") == runs[1]
    assert backend.load_run("nobody") is None
    assert [run.run for run in backend.list_runs()] == ["r2", "r1", "r0"]
    assert [run.name for run in backend.list_runs()] == ["f", "f", "g"]
    assert len(backend.list_runs(limit=2)) == 2
    backend.store_many([Stored("r1", 0, 1, b"x")])
    backend.revoke_many([("r1", 0, 1), ("r2", 5, 5)])
    backend.revoke_many([("r2", 5, 5)])
    backend.forget_run("r1")
    assert backend.load_run("r1") is None
    assert list(backend.fetch_many("r1")) == []
    assert list(backend.revoked()) == [("r2", 5, 5)]


def test_blobs(backend: SqlBackend) -> None:
    large = bytes(range(256)) * 40_000
    backend.put_blob("a", large)
    backend.put_blob("a", b"something else")
    assert backend.get_blob("a") == large
    assert backend.get_blob("b") is None


def test_what_has_expired_is_gone_and_swept(url: str) -> None:
    backend = SqlBackend(f"{url}?expires=0.1")
    backend.store_many([record(0)])
    backend.put_blob("b", b"x")
    backend.revoke_many([("r", 0, 1)])
    backend.save_run(RunRecord("r", "map", "f", 1, 0.0, "s"))
    time.sleep(0.2)
    assert (list(backend.fetch_many("r")), backend.get_blob("b"), list(backend.revoked())) == ([], None, [])
    assert (backend.load_run("r"), list(backend.list_runs())) == (None, [])
    backend._sweep_at = 0.0
    backend.store_many([Stored("new", 0, 1, b"x")])
    left = {
        table: backend._engine.rows(f"SELECT count(*) FROM qnb_{table}", {})[0][0]
        for table in ("outcomes", "extents", "runs", "blobs", "revocations")
    }
    assert left == {"outcomes": 1, "extents": 1, "runs": 0, "blobs": 0, "revocations": 0}
    backend.close()


def test_both_ways_read_each_other(tmp_path: Path) -> None:
    one, two = SqlBackend(f"sqlite:///{tmp_path}/qnb.db"), SqlBackend(f"sqlite+pysqlite:///{tmp_path}/qnb.db")
    one.store_many([record(0)])
    assert list(two.store_many([record(0), record(1)])) == [record(0)]
    assert [each.first for each in one.fetch_many("r")] == [0, 1]
    one.close()
    two.close()


def test_the_file_is_not_touched_before_it_is_needed(url: str, tmp_path: Path) -> None:
    backend = SqlBackend(url)
    assert list(tmp_path.iterdir()) == []
    backend.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        backend.list_runs()


def test_a_server_that_is_not_there_is_said_at_once_and_without_password() -> None:
    started = time.monotonic()
    with pytest.raises((BackendUnavailable, MissingLibrary)) as caught:
        SqlBackend("postgresql://me:hush-hush@127.0.0.1:9/x")
    assert "hush" not in str(caught.value)
    assert time.monotonic() - started < 5


def test_a_driver_nobody_knows() -> None:
    with pytest.raises(ConfigurationError):
        SqlBackend("nonsense://me:hush@127.0.0.1/x")
