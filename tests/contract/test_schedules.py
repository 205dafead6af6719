"""`session.every`: kept in the backend, fired once however many workers there are; and `eta=`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.backends.schedules import Schedules
from tests.contract.conftest import KEY, ROOT, new_place, until
from tests.contract.test_control import qnb_command
from tests.services import Services

SECONDS = 20.0


def noting(path: Path) -> Callable[..., str]:
    """A task that writes down which call it is."""
    name = str(path)

    def note(*args: Any, **kwargs: Any) -> str:
        import qnb

        call = qnb.current()
        assert call is not None
        with open(name, "a") as file:
            file.write(call.id + "\n")
        return f"{args} {kwargs}"

    return note


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.fixture(autouse=True)
def all_are_cancelled(session: qnb.Session) -> Iterator[None]:
    yield
    for schedule in session.schedules():
        schedule.cancel()


def test_every(session: qnb.Session, tmp_path: Path) -> None:
    begun = time.time()
    schedule = session.every("2s", noting(tmp_path / "ran"), 1, x=[2], name="tick")
    due, fired = schedule.next_at, schedule.fired
    assert due is not None
    if not fired:  # it may have fired where the machine is busy
        assert begun + 2 <= due.timestamp() <= time.time() + 2
        assert not schedule.cancelled
    until(lambda: len(lines(tmp_path / "ran")) >= 2)
    ran = lines(tmp_path / "ran")
    assert ran[:2] == [f"{schedule.id}:0", f"{schedule.id}:1"]
    until(lambda: schedule.fired >= 2)
    assert schedule.last_at is not None
    assert schedule.last_at.timestamp() - begun >= 2.0
    assert "tick" in repr(schedule)
    assert "every '2s'" in repr(schedule)


def test_the_table(session: qnb.Session, tmp_path: Path) -> None:
    assert len(session.schedules()) == 0
    assert "no schedules" in repr(session.schedules())
    first = session.every("1h30m", noting(tmp_path / "ran"), name="first")
    second = session.every("0 7 * * mon-fri", abs, -1, tz="Europe/Berlin")
    found = session.schedules()
    df = found.df
    assert list(df.columns[:7]) == ["name", "every", "tz", "function", "next_at", "last_at", "late_s"]
    assert list(df["name"]) == ["first", "abs"]
    assert list(df["run"]) == [first.id, second.id]
    assert list(df["fired"]) == [0, 0]
    assert df["tz"][1] == "Europe/Berlin"
    assert df["function"][0].endswith("note")
    assert str(df["next_at"].dt.tz) == str(df["last_at"].dt.tz) == "UTC"
    assert df["next_at"][1].tz_convert("Europe/Berlin").hour == 7
    assert "first" in repr(found)
    assert "1h30m" in found._repr_html_()
    assert (found["first"].id, found[second.id].name, found[1].id, len(found[:])) == (first.id, "abs", second.id, 2)
    with pytest.raises(qnb.UnknownTask, match=r"no schedule 'third': there are first, abs"):
        found["third"]


def test_cancel(session: qnb.Session, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    schedule = session.every("1s", noting(path))
    until(lambda: lines(path))
    session.schedules()[schedule.id].cancel()
    assert schedule.cancelled
    assert schedule.next_at is None
    assert "cancelled" in repr(schedule)
    assert len(session.schedules()) == 0
    count = len(lines(path))
    later = session.every("1s", noting(tmp_path / "other"))
    until(lambda: len(lines(tmp_path / "other")) >= 2)  # so long workers fire
    assert len(lines(path)) <= count + 1, "one may have run just then"
    later.cancel()


def test_run_again_it_takes_the_place(session: qnb.Session, tmp_path: Path) -> None:
    """A cell that is run again leaves one schedule."""
    one = session.every("1h", noting(tmp_path / "a"), name="nightly")
    two = session.every("2h", noting(tmp_path / "b"), 5, name="nightly")
    assert [schedule.id for schedule in session.schedules()] == [two.id]
    assert one.cancelled
    unnamed = [session.every("1h", abs, -1) for _ in range(2)]
    other = session.every("1h", abs, -2)
    assert {schedule.id for schedule in session.schedules()} == {two.id, unnamed[1].id, other.id}


def test_it_is_a_run(session: qnb.Session, sister: qnb.Session, tmp_path: Path) -> None:
    schedule = session.every("1s", session.task(retries=1)(noting(tmp_path / "ran")), 7, x=8)
    until(lambda: schedule.fired >= 2)
    batch = sister.attach(schedule.id)
    assert len(batch) >= 2
    assert batch.wait(SECONDS)
    assert batch[0].result() == "(7,) {'x': 8}"
    assert list(batch.df["state"])[:2] == ["done", "done"]
    assert list(batch.df.columns[:2]) == ["arg0", "x"]
    row = session.runs().loc[schedule.id]
    assert (row["kind"], row["done"] >= 2) == ("schedule", True)
    until(lambda: schedule.fired > len(batch))
    again = schedule.attach()
    assert len(again) > len(batch)
    assert again.wait(SECONDS)


def test_by_name_and_async(session: qnb.Session) -> None:
    async def later(x: int) -> int:
        return x + 1

    named, coroutine = session.every("1s", "os.path.basename", "a/b"), session.every("1s", later, 1)
    for schedule, value in ((named, "b"), (coroutine, 2)):
        until(lambda s=schedule: s.fired)
        assert schedule.attach()[0].result(SECONDS) == value


@pytest.mark.parametrize(
    "options",
    [{"key": "k"}, {"delay": 1}, {"eta": datetime(2100, 1, 1, tzinfo=UTC)}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_make_no_sense(session: qnb.Session, options: dict[str, Any]) -> None:
    with pytest.raises(qnb.ConfigurationError, match="for a single call"):
        session.every("1h", session.task(**options)(abs), -1)
    assert len(session.schedules()) == 0


def test_bad_times(session: qnb.Session) -> None:
    for when in ("often", "0.1s", "99 * * * *", None):
        with pytest.raises(qnb.ConfigurationError, match="every="):
            session.every(when, abs, -1)  # type: ignore[arg-type]
    with pytest.raises(qnb.ConfigurationError, match="no such time zone"):
        session.every("0 7 * * *", abs, -1, tz="Mars/Olympus")
    assert len(session.schedules()) == 0


def test_command_line(session: qnb.Session, kind: str, place: str) -> None:
    if kind == "memory":
        pytest.skip("no other process reaches memory:")
    assert "no schedules in" in qnb_command("schedules", place).stdout
    schedule = session.every("1h", abs, -1, name="hourly")
    done = qnb_command("schedules", place)
    assert done.returncode == 0
    assert "hourly" in done.stdout
    assert qnb_command("schedules", place, "--cancel", "nonesuch").returncode == 1
    done = qnb_command("schedules", place, "--cancel", "hourly")
    assert (done.returncode, schedule.id in done.stdout) == (0, True)
    assert schedule.cancelled


def test_over_rpc(environment: None) -> None:
    with (
        qnb.Session("memory://rpc-schedules", backend="rpc:", workers=0) as session,
        pytest.raises(qnb.Unsupported, match=r"need a backend that keeps.*backend='sqlite:'"),
    ):
        session.every("1m", abs, -1)


# Workers that come and go -----------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys
from qnb.backends import schedules
from qnb.worker import clock
schedules.LEASE_SECONDS = 1.5
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
where = sys.argv[1]
if where == "before":
    clock.Clock._publish = die
elif where == "after":
    schedules.Schedules.published = die
from qnb.cli import main
sys.exit(main(["worker", sys.argv[2], "--concurrency", "1", "--name", sys.argv[3]]))
"""


@pytest.fixture
def alone(kind: str, services: Services, tmp_path: Path) -> Iterator[tuple[qnb.Session, Callable[..., Any]]]:
    """A session without workers, and what starts some: `start(name, die="never")`."""
    if kind == "memory":
        pytest.skip("no other process reaches memory:")
    place = new_place(kind, services)
    started: list[subprocess.Popen[bytes]] = []
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    session = qnb.Session(place, workers=0)

    def start(name: str, die: str = "never") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, die, place, name]
        env = os.environ | {"PYTHONPATH": path, "QNB_KEY": KEY}
        with open(tmp_path / f"{name}.log", "wb") as log:
            started.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=log, stdout=log))
        return started[-1]

    try:
        yield session, start
    finally:
        for worker in started:
            worker.kill()
            worker.wait(20)
        session.close()


def test_once_however_many_workers(alone: tuple[qnb.Session, Callable[..., Any]], tmp_path: Path) -> None:
    session, start = alone
    for number in range(3):
        start(f"w{number}")
    until(lambda: len(session.workers) == 3)
    schedule = session.every("1s", noting(tmp_path / "ran"))
    until(lambda: len(lines(tmp_path / "ran")) >= 4)
    ran = lines(tmp_path / "ran")
    assert len(set(ran)) == len(ran)
    assert sorted(ran)[:4] == [f"{schedule.id}:{number}" for number in range(4)]


@pytest.mark.parametrize("die", ["before", "after"])
def test_a_worker_that_dies_loses_no_tick(
    alone: tuple[qnb.Session, Callable[..., Any]], tmp_path: Path, die: str
) -> None:
    """kill -9 after it has claimed a tick: before it publishes the call, or after that and before it says so."""
    session, start = alone
    worker = start("dies", die)
    until(lambda: session.workers.names == ["dies"])
    schedule = session.every("1s", noting(tmp_path / "ran"))
    assert worker.wait(20) == -signal.SIGKILL
    [claimed] = Schedules(session.backend, session.signer).fired(schedule.id)
    assert (claimed.number, claimed.sent, claimed.tick.worker) == (0, False, "dies")
    start("lives")
    until(lambda: f"{schedule.id}:1" in lines(tmp_path / "ran"))
    schedule.cancel()
    ran = lines(tmp_path / "ran")
    assert ran.count(f"{schedule.id}:0") >= 1
    if die == "before":
        assert len(set(ran)) == len(ran)
    until(lambda: schedule.attach()[0].done())
    assert schedule.attach()[0].result(SECONDS) == "() {}"
    assert "was left by worker dies" in (tmp_path / "lives.log").read_text()


def test_without_the_session_and_late(alone: tuple[qnb.Session, Callable[..., Any]], kind: str, tmp_path: Path) -> None:
    """No worker was there for some ticks: fired once, late, and told so. And no session is needed."""
    session, start = alone
    schedule = session.every("1s", noting(tmp_path / "ran"), name="lonely")
    until(lambda: schedule.next_at is not None and time.time() - schedule.next_at.timestamp() > 0, 10)
    time.sleep(2.2)  # two more ticks pass that nobody sees
    session.close()
    begun = time.time()
    start("late")
    until(lambda: len(lines(tmp_path / "ran")) >= 2)
    with qnb.Session(session._url, workers=0) as other:
        [row] = other.schedules().df.to_dict("records")
        assert row["missed"] >= 2
        assert row["fired"] >= 2
        assert lines(tmp_path / "ran")[:2] == [f"{schedule.id}:0", f"{schedule.id}:1"]
        first = Schedules(other.backend, other.signer).fired(schedule.id)[0].tick
        assert first.due <= first.at
        assert first.at >= begun
        other.schedules()["lonely"].cancel()
    assert "is fired once" in (tmp_path / "late.log").read_text()
    assert "no worker was there for it" in (tmp_path / "late.log").read_text()


def test_it_outlives_what_expires(kind: str, services: Services, tmp_path: Path) -> None:
    """What a schedule needs is renewed while workers are there, however soon all else expires."""
    if kind == "memory":
        pytest.skip("covered by the others")
    place = new_place(kind, services)
    backend = f"{place}{'&' if '?' in place else '?'}expires=6"
    with qnb.Session(place, backend=backend, workers=1) as session:
        noise = "x" * 20_000
        schedule = session.every("1s", noting(tmp_path / "ran"), noise)
        until(lambda: len(lines(tmp_path / "ran")) >= 10, 60)
        assert not schedule.cancelled
        assert [found.id for found in session.schedules()] == [schedule.id]
        schedule.cancel()


# eta ------------------------------------------------------------------------------------------------------------


def test_eta(session: qnb.Session) -> None:
    def now() -> float:
        import time

        return time.time()

    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    for eta in (soon, soon.astimezone().replace(tzinfo=None), soon.astimezone(None)):
        assert session.task(eta=eta)(now).submit().result(SECONDS) >= soon.timestamp() - 0.05
    assert min(session.task(eta=datetime.now(UTC) + timedelta(seconds=1))(now).map([]).results(), default=0) == 0
    later = datetime.now(UTC) + timedelta(seconds=1.5)
    batch = session.task(eta=later)(lambda _: now()).map(range(3))
    assert min(batch.results(SECONDS)) >= later.timestamp() - 0.05
    past = session.task(eta=datetime.now(UTC) - timedelta(days=1))(abs)
    assert past.submit(-1).result(SECONDS) == 1


def test_eta_that_is_none(session: qnb.Session) -> None:
    with pytest.raises(qnb.ConfigurationError, match=r"eta=10: give a datetime; delay="):
        session.task(eta=10)
    with pytest.raises(qnb.ConfigurationError, match="eta and delay both"):
        session.task(eta=datetime.now(UTC), delay=1)
