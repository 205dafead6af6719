"""What a fault test counts: what was submitted, what ran, what was told, what ran twice."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def record(path: str, mark: str, index: int) -> None:
    """One line a start or end; O_APPEND keeps lines of several processes whole."""
    with open(path, "a") as file:
        file.write(f"{mark} {index} {os.getpid()} {time.time()}\n")


def job(seconds: float, path: str) -> Callable[[int], int]:
    """A task that leaves its marks and takes so long. A closure, so that it ships by value."""

    def work(index: int) -> int:
        import os
        import time

        def mark(what: str) -> None:
            with open(path, "a") as file:
                file.write(f"{what} {index} {os.getpid()} {time.time()}\n")

        mark("S")
        time.sleep(seconds)
        mark("E")
        return index

    return work


@dataclass
class Ledger:
    """The counts of one run, printed with every test so that a report can be made of them."""

    name: str
    submitted: int
    done: int
    lost: int
    twice: list[int]  # which were run to the end more than once
    seconds_after: float

    @property
    def run_twice(self) -> int:
        return len(self.twice)

    def __str__(self) -> str:
        return (
            f"fault {self.name}: submitted {self.submitted}, outcomes {self.done}, lost {self.lost}, "
            f"run twice {self.run_twice}, last end {self.seconds_after:.2f} s after the fault"
        )


class Log:
    """The file that tasks write their marks to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def marks(self, what: str) -> list[tuple[int, int, float]]:
        """(index, pid, Unix time) of every start "S" or end "E"."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(int(i), int(pid), float(at)) for mark, i, pid, at in lines if mark == what]

    def wait_for(self, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Poll the file until something is in it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError(f"not within {seconds} s; marks so far: {len(self.marks('S'))} starts")

    def running(self) -> list[int]:
        """Pids that have started a call and not ended it."""
        ended = {(index, pid) for index, pid, _ in self.marks("E")}
        return [pid for index, pid, _ in self.marks("S") if (index, pid) not in ended]

    def ledger(self, name: str, outcomes: list[Any], submitted: int, fault_at: float) -> Ledger:
        """Count; print; the test asserts on what comes back."""
        ends = Counter(index for index, _, _ in self.marks("E"))
        last = max((at for _, _, at in self.marks("E")), default=fault_at)
        done = len([value for value in outcomes if not isinstance(value, BaseException)])
        twice = [index for index, count in ends.items() if count > 1]
        found = Ledger(name, submitted, done, submitted - done, twice, last - fault_at)
        print(found)
        return found
