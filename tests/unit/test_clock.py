"""A schedule that cannot be fired, whatever is raised, is told and holds up no other."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import qnb
from qnb.backends.sql import SqlBackend
from qnb.brokers.memory.broker import MemoryBroker
from qnb.message import Envelope, RunRecord
from qnb.session.schedules import Schedule


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[qnb.Session]:
    """A worker in this process, and a backend that keeps schedules."""
    monkeypatch.setenv("QNB_KEY", "the key of the clock's tests, used for nothing else")
    with contextlib.closing(qnb.Session("memory://clock", backend=f"sqlite:///{tmp_path}/q.db", workers=1)) as session:
        yield session
        for schedule in session.schedules():
            schedule.cancel()


def fires(schedule: Schedule, times: int) -> None:
    end = time.monotonic() + 15
    while schedule.fired < times:
        assert time.monotonic() < end, f"fired {schedule.fired} times"
        time.sleep(0.05)


def test_one_that_cannot_be_published(
    session: qnb.Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish = MemoryBroker.publish_many

    def refuse(broker: MemoryBroker, envelopes: Sequence[Envelope]) -> None:
        if any(envelope.queue == "closed" for envelope in envelopes):
            raise OSError("the client of this queue is broken")
        publish(broker, envelopes)

    monkeypatch.setattr(MemoryBroker, "publish_many", refuse)
    with caplog.at_level(logging.WARNING):
        bad = session.every("1s", session.task(queue="closed")(abs), -1, name="bad")
        fires(session.every("1s", abs, -2, name="good"), 3)
    assert bad.fired == 0
    assert f"schedule {bad.id}, trying again: OSError('the client of this queue is broken')" in caplog.text


def test_one_that_cannot_be_read(
    session: qnb.Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = session.every("1h", abs, -1, name="bad")
    load = SqlBackend.load_run

    def refuse(backend: SqlBackend, run: str) -> RunRecord | None:
        if run == bad.id and threading.current_thread().name == "qnb-clock":
            raise OSError("the disk is broken here")
        return load(backend, run)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(SqlBackend, "load_run", refuse)
        good = session.every("1s", abs, -2, name="good")
        end = time.monotonic() + 15
        while not (outcomes := session.backend.fetch_many(good.id)):
            assert time.monotonic() < end, "not fired"
            time.sleep(0.05)
    assert outcomes[0].first == 0
    assert f"schedule {bad.id}, trying again: OSError('the disk is broken here')" in caplog.text
