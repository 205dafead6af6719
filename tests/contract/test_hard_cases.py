"""What a stranger's reading found once: each would hang, end a worker, or lose a call."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import qnb
from qnb.errors import ConfigurationError
from qnb.settings import absolute_url, parse_url

SECONDS = 20


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[qnb.Session]:
    monkeypatch.chdir(tmp_path)
    with qnb.Session(workers=2, key="a key for the hard cases") as found:
        yield found


def test_options_of_numpy_are_plain_on_the_wire(session: qnb.Session) -> None:
    task = session.task(priority=np.int64(3))(abs)
    assert task.submit(-1).result(SECONDS) == 1
    with pytest.raises(ConfigurationError, match="retries"):
        session.task(retries=2.5)
    with pytest.raises(ConfigurationError, match="whole number"):
        session.task(retries=True)


def test_many_retries_do_not_overflow(session: qnb.Session) -> None:
    def fail() -> None:
        raise ValueError("always")

    with pytest.raises(ValueError, match="always"):
        session.task(retries=1100, backoff=0)(fail).submit().result(60)


def test_a_coroutine_may_end_cancelled(session: qnb.Session) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    assert isinstance(session.submit(give_up).exception(SECONDS), BaseException)


def test_a_child_that_stays_hides_no_death(session: qnb.Session) -> None:
    def fork_and_die() -> None:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    future = session.task(max_deliveries=1)(fork_and_die).submit()
    with pytest.raises(qnb.TaskLost, match="SIGKILL"):
        future.result(SECONDS)


def test_a_callback_may_wait(session: qnb.Session) -> None:
    slow, seen, done = session.submit(time.sleep, 0.3), [], threading.Event()

    def wait_for_slow(_: object) -> None:
        slow.result(SECONDS)
        seen.append(slow.state)
        done.set()

    first = session.submit(abs, -1)
    first.add_done_callback(wait_for_slow)
    assert first.result(SECONDS) == 1
    assert done.wait(SECONDS)
    assert seen == ["done"]


def test_local_workers_that_died_are_started_anew(session: qnb.Session) -> None:
    assert session.submit(abs, -1).result(SECONDS) == 1
    for worker in session.workers:
        process = psutil.Process(worker["pid"])
        for one in [*process.children(recursive=True), process]:
            one.kill()
    assert session.submit(abs, -2).result(60) == 2


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "C# course? 100%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with qnb.Session(workers=1, key=os.urandom(32)) as session:
        assert session.submit(abs, -1).result(SECONDS) == 1
    assert (folder / ".qnb" / "qnb.db").exists()
    assert (folder / ".qnb").stat().st_mode & 0o077 == 0
    assert parse_url(absolute_url("sqlite:")).path.endswith("course? 100%/.qnb/qnb.db")


def test_a_lane_has_no_key_in_its_environment(session: qnb.Session) -> None:
    names = session.submit(lambda: sorted(os.environ)).result(SECONDS)
    assert not {"QNB_KEY", "QNB_BROKER", "QNB_BACKEND"} & set(names)


def test_a_result_no_backend_takes_fails_and_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnb.worker.settling.OUTCOME_BYTES", 2000)
    with qnb.Session("memory:", workers=1, key="a key for the hard cases") as session:
        large = session.submit(bytes, 5000)
        assert session.submit(abs, -1).result(SECONDS) == 1
        with pytest.raises(qnb.PayloadTooLarge, match="takes 2,000 at most"):
            large.result(SECONDS)
