"""What killed workers left in the temporary folder is removed by the next one, and nothing of those that live."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

Start = Callable[..., subprocess.Popen[bytes]]
WORKER = [sys.executable, "-m", "qnb.cli", "worker", "--concurrency", "1"]


def folders(temporary: Path) -> set[Path]:
    return set(temporary.glob("qnb-blobs-*"))


def one_more(temporary: Path, before: set[Path]) -> Path:
    end = time.monotonic() + 20
    while not (found := folders(temporary) - before):
        assert time.monotonic() < end, "the worker has made no folder"
        time.sleep(0.05)
    return found.pop()


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Start]:
    """Real workers of one TMPDIR, each with a broker of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*before: str) -> subprocess.Popen[bytes]:
        command = [*before, *WORKER, f"sqlite:///{tmp_path}/{len(started)}.db"]
        environment = {**os.environ, "TMPDIR": str(temporary), "QNB_KEY": "the key of these tests, used for nothing"}
        with open(tmp_path / "workers.log", "ab") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


def test_what_a_killed_worker_left_goes(start: Start, temporary: Path) -> None:
    killed = start()
    left = one_more(temporary, set())
    (left / "0123").write_bytes(b"large")
    living = start()
    lives = one_more(temporary, {left})
    assert left.exists(), "a worker that lives has its folder"
    lanes = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    start()  # the lanes of the one killed may still be there: they have no part in the lock
    one_more(temporary, {left, lives})
    assert not left.exists()
    assert lives.exists()
    psutil.wait_procs(lanes, timeout=10)
    living.terminate()
    living.wait(20)
    assert not lives.exists(), "one that ends removes its own"


def test_what_cleans_temporary_folders_leaves_that_of_a_living_worker(
    start: Start, temporary: Path, tmp_path: Path
) -> None:
    """A worker may live for longer than what nobody touches stays in /tmp."""
    cleaner = shutil.which("systemd-tmpfiles")
    if cleaner is None:
        pytest.skip("systemd-tmpfiles is not here")
    lives, dead = start(), temporary / "of-nobody"
    folder = one_more(temporary, set())
    dead.mkdir()
    for place in (folder, dead):
        (place / "0123").write_bytes(b"large")
    time.sleep(1.1)  # the age of files, in its whole seconds
    (tmp_path / "tmp.conf").write_text(f"d {temporary} 0755 - - 1s\n")
    subprocess.run([cleaner, "--clean", str(tmp_path / "tmp.conf")], check=True)
    assert not (dead / "0123").exists()
    assert (folder / "0123").exists()
    start()
    one_more(temporary, {folder})
    assert (folder / "0123").exists()
    assert lives.poll() is None


def test_lanes_do_not_hold_it(start: Start, temporary: Path) -> None:
    """Else a lane that hangs on after its worker keeps what nobody else knows of."""
    killed = start()
    left = one_more(temporary, set())
    process = psutil.Process(killed.pid)
    end = time.monotonic() + 20
    while not (lanes := process.children(recursive=True)):
        assert time.monotonic() < end, "no lane"
        time.sleep(0.05)
    for lane in lanes:
        lane.suspend()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    try:
        start()
        one_more(temporary, {left})
        assert not left.exists()
    finally:
        for lane in lanes:
            lane.kill()


def test_another_process_number_space(start: Start, temporary: Path) -> None:
    """As in a container, or on another machine that shares TMPDIR: process numbers say nothing."""
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make a process number space")
    start()
    lives = one_more(temporary, set())
    start(*apart)
    other = one_more(temporary, {lives})
    start()
    one_more(temporary, {lives, other})
    assert lives.exists()
    assert other.exists()
