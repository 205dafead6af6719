"""Sessions that encrypt, workers that were not told, keys changed while work goes on, and two keys in one place."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.codec import archives
from qnb.codec.parts import get_sealed
from qnb.errors import BadSignature
from tests.contract.conftest import KEY, new_place, until
from tests.services import Services

SECONDS = 20.0
SECRET = "s3cret-of-a-task"


def work(word: str, *, fail: bool = False) -> list[str]:
    print(word)
    if fail:
        raise ValueError(word)
    return [word, word]


@pytest.fixture
def secret(session: qnb.Session, place: str) -> Iterator[qnb.Session]:
    """A session that encrypts; its workers are those of one that does not."""
    opened = qnb.Session(place, workers=0, encrypt=True)
    yield opened
    opened.close()


def test_all_that_is_stored_is_encrypted(session: qnb.Session, secret: qnb.Session, place: str) -> None:
    large = SECRET * 100_000
    batch = secret.map(work, [SECRET] * 3)
    assert batch.results(SECONDS) == [[SECRET, SECRET]] * 3
    future = secret.submit(work, SECRET)
    assert future.result(SECONDS) == [SECRET, SECRET]
    failing = secret.submit(work, SECRET, fail=True)
    with pytest.raises(ValueError, match=SECRET):
        failing.result(SECONDS)
    assert secret.submit(len, large).result(SECONDS) == len(large)
    assert secret.submit(_retried, SECRET).result(SECONDS) == SECRET
    records = [record for run in (batch.run, future.id.rpartition(":")[0]) for record in secret.backend.fetch_many(run)]
    assert records or not secret.backend.blobs
    assert {record.data[6:7] for record in records} <= {b"O"}
    assert not any(SECRET.encode() in record.data for record in records)
    if secret.backend.blobs:
        run = until(lambda: secret.backend.load_run(batch.run))
        assert run.data[6:7] == b"R"
        code = until(lambda: get_sealed(secret.backend.get_blob, secret.signer, batch.function.hash.hex()))
        assert code[6:7] == b"C"
    if place.startswith("sqlite"):
        files = [path for path in Path(place.partition("///")[2].partition("?")[0]).parent.iterdir() if path.is_file()]
        assert files
        assert not any(SECRET.encode() in path.read_bytes() for path in files), "nor in the log of the database"


def _retried(word: str) -> str:
    """Published anew by the worker."""
    return word


def test_both_side_by_side(session: qnb.Session, secret: qnb.Session) -> None:
    ours, theirs = session.map(work, ["a"] * 5), secret.map(work, ["b"] * 5)
    assert ours.results(SECONDS) == [["a", "a"]] * 5
    assert theirs.results(SECONDS) == [["b", "b"]] * 5
    assert not any(record.data[6:7].isupper() for record in session.backend.fetch_many(ours.run))
    assert list(secret.control.ping()) == list(session.control.ping())


def test_retries(secret: qnb.Session, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    def once(word: str) -> str:
        import os

        if not os.path.exists(mark):
            open(mark, "w").close()
            raise OSError("not yet")
        return word

    task: Any = secret.task(retries=2, backoff=0.01)(once)
    assert task.submit(SECRET).result(SECONDS) == SECRET


def test_a_session_that_does_not_encrypt_attaches(session: qnb.Session, secret: qnb.Session) -> None:
    if not session.backend.blobs:
        pytest.skip("nothing to attach to")
    batch = secret.map(work, [SECRET] * 2)
    batch.wait(SECONDS)
    again = session.attach(batch.run)
    assert again.wait(SECONDS)
    assert again.results() == [[SECRET, SECRET]] * 2


# Keys that are changed ------------------------------------------------------------------------------------------

OLD, NEW = "the old key of this test", "the new key of this test"


def test_a_key_is_changed(kind: str, services: Services) -> None:
    """Workers first learn to read both; sessions with either are served, and read what comes."""
    place = new_place(kind, services)
    with qnb.Session(place, key=f"{OLD},{NEW}", workers=1) as first:
        assert first.submit(abs, -1).result(SECONDS) == 1
        with qnb.Session(place, key=f"{NEW},{OLD}", workers=0) as second:
            assert second.map(work, ["x"]).results(SECONDS) == [["x", "x"]]
            assert second.submit(abs, -2).result(SECONDS) == 2
            assert list(second.control.ping(timeout=5))
        with qnb.Session(place, key=OLD, workers=0) as old:
            assert old.submit(abs, -3).result(SECONDS) == 3
        with qnb.Session(place, key=NEW, workers=0) as new:
            future = new.submit(abs, -4)
            with pytest.raises(BadSignature, match=new.signer.key_id):
                future.result(SECONDS)  # workers read it, and sign with what this session does not know
        assert KEY not in repr(first)


# Keys of two people ---------------------------------------------------------------------------------------------

_numbers = itertools.count()


def importing(name: str) -> Any:
    """A function of the notebook that imports a module where it runs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(f"def call():\n    import {name}\n    return {name}.VALUE\n", namespace)
    return namespace["call"]


@pytest.mark.parametrize("keys", [(OLD, NEW), (NEW, OLD)], ids=["one way", "the other way"])
def test_two_people_who_store_the_same(
    kind: str, keys: tuple[str, str], services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is stored by both before a worker of either fetches it: neither who comes first nor who comes last has
    what the other cannot open."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    place, name = new_place(kind, services), f"both{os.getpid()}_{next(_numbers)}"
    large, noise = os.urandom(6 << 20), os.urandom(20_000).hex()
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text("VALUE = 'shipped'\n")

    def long() -> int:
        return len(noise)

    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(qnb.Session(place, key=key, queue=key[:7], workers=0)) for key in keys]
        sent = []
        for session in sessions:
            futures = {"argument": session.submit(len, large), "code": session.submit(long)}
            session.flush()
            session.ship(tmp_path / "modules")
            sent.append(futures | {"module": session.submit(importing(name))})
            session.flush()
        hashes = {session.ship_function(long).hash for session in sessions}
        assert len(hashes) == 1, "or they do not store the same"
        [archive] = sessions[0].ships_now()
        for key, futures in zip(keys, sent, strict=True):
            shutil.rmtree(archives.folder() / archive, ignore_errors=True)  # a worker of another machine
            with qnb.Session(place, key=key, queue=key[:7], workers=1):
                faults = {what: future.exception(SECONDS) for what, future in futures.items()}
            assert faults == dict.fromkeys(futures)
            assert [future.result() for future in futures.values()] == [6 << 20, 40_000, "shipped"]
