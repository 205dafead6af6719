"""An hour at a set rate while workers, the server and kernels are killed at random: python -m tests.faults.endurance.

Two kernels submit: one is killed again and again, the other lives through all of it. So does one of the workers. At the
end every run that was ever written into the book is looked up; the ledger says what was submitted, what became of it,
what ran twice, what is lost, and how much memory the processes that lived had at the start and at the end. Exits with 1
when anything is lost, or any part of it failed.

Every minute it says how far it is. The ledger is printed whatever happens: a part that fails is told in it, and the
first Ctrl-C or SIGTERM ends the hour, the second ends the counting.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

import qnb
from qnb.codec.signing import OUTCOMES
from qnb.errors import QnbError
from qnb.message import DONE, STATES, Outcomes
from tests.faults.conftest import CASES, KEY, Ground, Workers, ground, kill_tree
from tests.faults.ledger import Log
from tests.services import Services

WORKERS, LANES = 3, 2
FAILING = 50  # one of so many tasks raises
WARM_SECONDS = 60.0  # after which memory is looked at first
LOOK_SECONDS = 60.0  # between two looks at memory, and two lines that say how far it is
COUNT_SECONDS = 300.0  # how long calls may take that are still open at the end
HURRY_SECONDS = 30.0  # the same after Ctrl-C
TELL_SECONDS = 10.0  # between two lines that say what the counting waits for

KERNEL = """
import os, random, sys, time
import qnb

url, marks, book, rate, first = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])

def work(index, before=0):
    import os, time
    time.sleep(0.005)
    with open(marks, "a") as file:
        file.write(f"E {index} {os.getpid()} {time.time()}\\n")
    if index % FAILING == 0:
        raise ValueError(index)
    return index

session = qnb.Session(url, workers=0)
at = time.monotonic()
while True:
    half = max(1, int(rate / 2))
    upper = session.map(work, range(first, first + half))
    lower = session.map(work, range(first + half, first + 2 * half), upper)
    with open(book, "a") as file:
        file.write(f"{upper.run} {first} {half} 0\\n{lower.run} {first + half} {half} {half}\\n")
    first += 2 * half
    at += 1.0
    time.sleep(max(0.0, at - time.monotonic()))
""".replace("FAILING", str(FAILING))


@dataclass
class Counts:
    """What became of the calls of the runs that were looked at."""

    runs: int = 0
    submitted: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0
    unwritten: int = 0


class Endurance:
    """One run of it."""

    def __init__(self, place: Ground, restart: Callable[[], None], folder: Path, options: argparse.Namespace) -> None:
        self.place, self.restart, self.options = place, restart, options
        self.folder, self.log = folder, Log(folder / "marks.txt")
        self.book = folder / "book.txt"
        self.book.touch()
        self.workers = Workers(folder)
        self.random = random.Random(options.seed)
        self.killed: Counter[str] = Counter()
        self.memory: dict[str, list[float]] = {}
        self.counts = Counts()
        self.troubles: list[str] = []
        self.kernels: list[subprocess.Popen[bytes]] = []
        self.lasted = 0.0
        self._next = 0

    def kernel(self) -> subprocess.Popen[bytes]:
        """One more kernel, with numbers of its own for its tasks."""
        self._next += 10_000_000
        arguments = [self.place.url, str(self.log.path), str(self.book), str(self.options.rate / 2), str(self._next)]
        command = [sys.executable, "-c", KERNEL, *arguments]
        with open(self.folder / "kernels.log", "ab") as log:
            # A session of its own: Ctrl-C in a terminal reaches all of a group, and is meant for this process alone.
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def run(self) -> bool:
        """The hour; whether nothing was lost. The ledger is printed in any case."""
        seconds = COUNT_SECONDS
        try:
            with contextlib.closing(qnb.Session(self.place.url, workers=0)) as session:
                try:
                    self._harm(session)
                except KeyboardInterrupt:
                    self._trouble("interrupted: the ledger counts what was submitted until then")
                    seconds = HURRY_SECONDS
                except BaseException:
                    self._trouble(f"the hour ended early:\n{traceback.format_exc()}")
                self._end_kernels()
                with self._told("the counting"):
                    self._count(session, time.monotonic() + seconds)
        except BaseException:  # opening or closing the session
            self._trouble(traceback.format_exc())
        finally:
            self.ledger()
            self._end_kernels()
            self.workers.stop()
        return not (self.counts.lost or self.counts.wrong or self.troubles)

    def _end_kernels(self) -> None:
        for kernel in self.kernels:
            kernel.kill()
            kernel.wait()

    def _trouble(self, text: str) -> None:
        self.troubles.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What fails in one part is told, and the next part goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self._trouble(f"{what} was interrupted")
        except Exception:
            self._trouble(f"{what} failed:\n{traceback.format_exc()}")

    def _harm(self, session: qnb.Session) -> None:
        begun = time.monotonic()
        try:
            steady, *others = self.workers.start(session, self.place.url, WORKERS, LANES)
            self.kernels = [self.kernel(), self.kernel()]
            living = {"worker": steady, "kernel": psutil.Process(self.kernels[0].pid), "this session": psutil.Process()}
            looked = begun + WARM_SECONDS - LOOK_SECONDS
            while time.monotonic() - begun < self.options.seconds:
                time.sleep(self.random.uniform(0.5, 1.5) * self.options.every)
                self._kill_one(session, others)
                if time.monotonic() >= looked + LOOK_SECONDS:
                    looked = time.monotonic()
                    self._look(living, looked - begun)
            self._look(living, time.monotonic() - begun)
        finally:
            self.lasted = time.monotonic() - begun

    def _kill_one(self, session: qnb.Session, others: list[psutil.Process]) -> None:
        what = self.random.choices(["worker", "kernel", "server"], [6, 2, 1])[0]
        self.killed[what] += 1
        if what == "worker":
            kill_tree(others.pop(0).pid)
            others += self._start(session)
        elif what == "kernel":
            self.kernels[1].kill()
            self.kernels[1].wait()
            self.kernels[1] = self.kernel()
        else:
            self.restart()

    def _look(self, living: dict[str, psutil.Process], seconds: float) -> None:
        """Memory, and how far it is. A process that was to live and does not is told once, and looked at no more."""
        for name, process in list(living.items()):
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    raise psutil.NoSuchProcess(process.pid)
                below = [] if process.pid == os.getpid() else process.children(recursive=True)
                whole = sum(each.memory_info().rss for each in [process, *below])
            except psutil.NoSuchProcess:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue  # one of those below it has just ended
                del living[name]
                log = self.folder / ("w0.log" if name == "worker" else "kernels.log")
                self._trouble(f"the {name} that was to live has ended; its log: {log.read_text()[-2000:]}")
            else:
                self.memory.setdefault(name, []).append(whole / 2**20)
        runs, ends = len(self._booked()), len(self._ends())
        self._say(f"after {seconds:.0f} s: killed {dict(self.killed)}, {runs} runs in the book, {ends} calls ended")

    def _start(self, session: qnb.Session) -> list[psutil.Process]:
        end = time.monotonic() + 120
        while True:
            try:
                return self.workers.start(session, self.place.url, 1, LANES)
            except (QnbError, AssertionError):  # the server is just coming back
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def _booked(self) -> list[tuple[str, int, int, int]]:
        """(run, first number, calls, how far before them are those they refer to) of every whole line of the book."""
        lines = [line.split() for line in self.book.read_text().splitlines()]
        return [(line[0], int(line[1]), int(line[2]), int(line[3])) for line in lines if len(line) == 4]

    def _ends(self) -> list[int]:
        lines = [line.split() for line in self.log.path.read_text().splitlines()]
        return [int(line[1]) for line in lines if len(line) == 4 and line[0] == "E"]

    def _states(self, session: qnb.Session, run: str, count: int, deadline: float) -> list[str]:
        """What became of the calls of a run."""
        try:
            batch = session.attach(run)
        except qnb.UnknownTask:
            # Its kernel was killed before the run was written down, which is done a moment later: its calls go on.
            self.counts.unwritten += 1
        else:
            while not batch.wait(max(0.0, min(TELL_SECONDS, deadline - time.monotonic()))):
                self._waits(run, list(batch.df["state"]), deadline)
                if time.monotonic() >= deadline:
                    break
            return list(batch.df["state"])
        told = time.monotonic()
        while True:
            states = ["queued"] * count
            for stored in session.backend.fetch_many(run):
                outcomes = session.signer.unpack(OUTCOMES, stored.data, Outcomes)
                for position, state in enumerate(outcomes.states or bytes([DONE]) * outcomes.count):
                    states[outcomes.first + position] = STATES[state]
            if "queued" not in states or time.monotonic() > deadline:
                return states
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                self._waits(run, states, deadline)
            time.sleep(0.5)

    def _waits(self, run: str, states: list[str], deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        self._say(f"waits for run {run}, after {self.counts.runs} runs: {dict(Counter(states))}; {left:.0f} s are left")

    def _count(self, session: qnb.Session, deadline: float) -> None:
        runs, counts, told = self._booked(), self.counts, time.monotonic()
        self._say(f"the hour is over: looks up {len(runs)} runs")
        for run, first, count, before in runs:
            counts.submitted += count
            try:
                found = self._states(session, run, count, deadline)
            except (QnbError, OSError) as error:
                self._trouble(f"run {run} cannot be looked up: {error!r}")
                found = ["unknown"] * count
            counts.runs += 1
            counts.states.update(found)
            counts.lost += sum(state not in ("done", "failed") for state in found)
            # A call of the second layer fails by itself, or with the one whose value it was to get.
            fails = [n % FAILING == 0 or (before and (n - before) % FAILING == 0) for n in range(first, first + count)]
            expected = ["failed" if each else "done" for each in fails]
            counts.wrong += sum(a != b for a, b in zip(found, expected, strict=True))
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                self._say(f"looked up {counts.runs} of {len(runs)} runs: {dict(counts.states)}")

    def ledger(self) -> None:
        """What is known, printed."""
        counts, twice = self.counts, sum(times > 1 for times in Counter(self._ends()).values())
        print(
            f"endurance {self.place.label}: {self.lasted:.0f} s at {self.options.rate:g} tasks/s, killed "
            f"{dict(self.killed)}; submitted {counts.submitted}, done {counts.states['done']}, failed "
            f"{counts.states['failed']} (as they should), lost {counts.lost}, with another end than they should "
            f"{counts.wrong}, run to the end twice {twice}, runs that were not written down {counts.unwritten} (their "
            f"calls count); {counts.runs} of {len(self._booked())} runs looked up, {len(self.troubles)} troubles",
            flush=True,
        )
        for name, values in self.memory.items():
            quarters = ", ".join(f"{values[(len(values) - 1) * n // 4]:.0f}" for n in range(5))
            print(f"  memory of the {name} that lived, by quarters: {quarters} MiB, {max(values):.0f} at most "
                  f"({len(values)} looks)", flush=True)  # fmt: skip
        for text in self.troubles:
            print(f"  trouble: {text}", flush=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C, also where SIGINT was ignored (a shell's `&`) and for SIGTERM."""
    raise KeyboardInterrupt


def main() -> int:
    """One broker, for as long as asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.endurance", description=__doc__)
    parser.add_argument("broker", nargs="?", default="redis")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=40.0, help="tasks a second")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["QNB_KEY"] = KEY
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    case = next(case for case in CASES if case.label == options.broker)
    services = Services()
    try:
        with tempfile.TemporaryDirectory() as folder:
            assert case.restart is not None
            url, restart = case.restart(services)
            return 0 if Endurance(ground(case, url, restart), restart, Path(folder), options).run() else 1
    finally:
        services.stop()


if __name__ == "__main__":
    sys.exit(main())
