"""Why nothing happens is told when it is so, and not of workers that are on their way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import qnb
from qnb.session import watch


def test_workers_that_are_starting_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with qnb.Session(f"sqlite:///{tmp_path}/qnb.db", workers=1, key="a key for these tests") as session:
        child = session._workers._process.pid
        os.kill(child, signal.SIGSTOP)  # as on a machine that is very busy
        try:
            future = session.submit(abs, -1)
            looker = watch.Watch(session)
            looker.look()
            assert not caplog.records
            monkeypatch.setattr(watch, "STARTING_SECONDS", 0.0)
            looker.look()
            assert "no worker serves queue 'qnb'" in caplog.text
        finally:
            os.kill(child, signal.SIGCONT)
        assert future.result(60) == 1
