"""An hour at a set rate while workers, the server and kernels are killed at random: python -m tests.faults.endurance.

Two kernels submit: one is killed again and again, the other lives through all of it. So does one of the workers. At the
end every run that was ever written into the book is looked up; the ledger says what was submitted, what became of it,
what ran twice, what is lost, and how much memory the processes that lived had at the start and at the end. Exits with 1
when anything is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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
        self.unwritten = 0
        self._next = 0

    def kernel(self) -> subprocess.Popen[bytes]:
        """One more kernel, with numbers of its own for its tasks."""
        self._next += 10_000_000
        arguments = [self.place.url, str(self.log.path), str(self.book), str(self.options.rate / 2), str(self._next)]
        command = [sys.executable, "-c", KERNEL, *arguments]
        with open(self.folder / "kernels.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def run(self) -> bool:
        """The hour; whether nothing was lost."""
        kernels: list[subprocess.Popen[bytes]] = []
        try:
            with contextlib.closing(qnb.Session(self.place.url, workers=0)) as session:
                steady, *others = self.workers.start(session, self.place.url, WORKERS, LANES)
                kernels = [self.kernel(), self.kernel()]
                living = {"worker": steady, "kernel": psutil.Process(kernels[0].pid), "this session": psutil.Process()}
                self._harm(session, living, others, kernels)
                for kernel in kernels:
                    kernel.kill()
                    kernel.wait()
                return self._count(session, time.monotonic() + 300)
        finally:
            for kernel in kernels:
                kernel.kill()
            self.workers.stop()

    def _harm(
        self,
        session: qnb.Session,
        living: dict[str, psutil.Process],
        others: list[psutil.Process],
        kernels: list[subprocess.Popen[bytes]],
    ) -> None:
        begun, measured = time.monotonic(), time.monotonic() + WARM_SECONDS
        while time.monotonic() - begun < self.options.seconds:
            time.sleep(self.random.uniform(0.5, 1.5) * self.options.every)
            what = self.random.choices(["worker", "kernel", "server"], [6, 2, 1])[0]
            self.killed[what] += 1
            if what == "worker":
                kill_tree(others.pop(0).pid)
                others += self._start(session)
            elif what == "kernel":
                kernels[1].kill()
                kernels[1].wait()
                kernels[1] = self.kernel()
            else:
                self.restart()
            if time.monotonic() >= measured:
                measured = time.monotonic() + 60
                for name, process in living.items():
                    below = [] if process.pid == os.getpid() else process.children(recursive=True)
                    whole = sum(each.memory_info().rss for each in [process, *below])
                    self.memory.setdefault(name, []).append(whole / 2**20)

    def _start(self, session: qnb.Session) -> list[psutil.Process]:
        while True:
            try:
                return self.workers.start(session, self.place.url, 1, LANES)
            except QnbError:  # the server is just coming back
                time.sleep(0.5)

    def _states(self, session: qnb.Session, run: str, count: int, deadline: float) -> list[str]:
        """What became of the calls of a run."""
        try:
            batch = session.attach(run)
        except qnb.UnknownTask:
            # Its kernel was killed before the run was written down, which is done a moment later: its calls go on.
            self.unwritten += 1
        else:
            batch.wait(max(1.0, deadline - time.monotonic()))
            return list(batch.df["state"])
        while True:
            states = ["queued"] * count
            for stored in session.backend.fetch_many(run):
                outcomes = session.signer.unpack(OUTCOMES, stored.data, Outcomes)
                for position, state in enumerate(outcomes.states or bytes([DONE]) * outcomes.count):
                    states[outcomes.first + position] = STATES[state]
            if "queued" not in states or time.monotonic() > deadline:
                return states
            time.sleep(0.5)

    def _count(self, session: qnb.Session, deadline: float) -> bool:
        runs = [line.split() for line in self.book.read_text().splitlines()]
        submitted, states, wrong, lost = 0, Counter[str](), 0, 0
        for run, first, count, before in runs:
            found = self._states(session, run, int(count), deadline)
            submitted += int(count)
            states.update(found)
            lost += sum(state not in ("done", "failed") for state in found)
            numbers = range(int(first), int(first) + int(count))
            # A call of the second layer fails by itself, or with the one whose value it was to get.
            fails = [n % FAILING == 0 or (before != "0" and (n - int(before)) % FAILING == 0) for n in numbers]
            expected = ["failed" if each else "done" for each in fails]
            wrong += sum(a != b for a, b in zip(found, expected, strict=True))
        ends = Counter(index for index, _, _ in self.log.marks("E"))
        twice = sum(times > 1 for times in ends.values())
        print(
            f"endurance {self.place.label}: {self.options.seconds:.0f} s at {self.options.rate:g} tasks/s, killed "
            f"{dict(self.killed)}; submitted {submitted}, done {states['done']}, failed {states['failed']} (as they "
            f"should), lost {lost}, with another end than they should {wrong}, run to the end twice {twice}, "
            f"runs that were not written down {self.unwritten} (their calls count)",
            flush=True,
        )
        for name, values in self.memory.items():
            print(f"  memory of the {name} that lived: {values[0]:.0f} MiB at the start, {values[-1]:.0f} at the end, "
                  f"{max(values):.0f} at most ({len(values)} looks)", flush=True)  # fmt: skip
        return not lost and not wrong


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
