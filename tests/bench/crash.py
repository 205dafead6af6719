"""What a kill -9 costs: 200 calls of 50 ms, and a worker or a lane that dies in the middle of one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.bench.systems.base import System

Mark = tuple[int, int, float]  # the call, the process, when


def read_marks(path: Path) -> tuple[list[Mark], list[Mark]]:
    """Starts and ends so far."""
    starts: list[Mark] = []
    ends: list[Mark] = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            kind, number, pid, at = line.split()
            (starts if kind == "S" else ends).append((int(number), int(pid), float(at)))
    return starts, ends


def await_middle(path: Path, least: int, processes: int) -> list[Mark]:
    """Wait until `least` calls have ended and so many processes are in the middle of one; what runs."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        starts, ends = read_marks(path)
        over, now = {mark[:2] for mark in ends}, time.time()
        running = [mark for mark in starts if mark[:2] not in over and 0.005 < now - mark[2] < 0.035]
        if len(ends) >= least and len({pid for _, pid, _ in running}) >= processes:
            return running
        time.sleep(0.002)
    raise RuntimeError(f"the workers never ran {processes} calls at once: {len(starts)} starts, {len(ends)} ends")


def kill_worker(system: System, count: int, patience: float) -> dict[str, float]:
    """One of two workers dies. What is missing after `patience`, and seconds from the kill to the last end."""
    path = system.place.folder / "marks"
    handles = [system.submit("slow", number, str(path)) for number in range(count)]
    if hasattr(system, "session"):
        system.session.flush()
    await_middle(path, count * 2 // 5, 2)
    killed = time.time()
    for pid in system.victims():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while time.time() - killed < patience and len({mark[0] for mark in read_marks(path)[1]}) < count:
        time.sleep(0.02)
    starts, ends = read_marks(path)
    told, patience = 0, 5.0
    for number, handle in enumerate(handles):
        try:
            told += system.result(handle, patience) == number
        except BaseException:
            patience = 0.05
    return {
        "missing": count - len({number for number, _, _ in ends}),
        "results missing": count - told,
        "seconds": max(at for _, _, at in ends) - killed,
        "ran twice": sum(times > 1 for times in Counter(number for number, _, _ in ends).values()),
        "begun twice": sum(times > 1 for times in Counter(number for number, _, _ in starts).values()),
    }


def kill_lane(system: System, count: int) -> dict[str, float]:
    """A process that runs calls dies; seconds until its call runs again, and calls without a result."""
    path = system.place.folder / "marks"
    handles = [system.submit("slow", number, str(path)) for number in range(count)]
    if hasattr(system, "session"):
        system.session.flush()
    number, pid, _ = await_middle(path, count * 2 // 5, 2)[0]
    killed = time.time()
    psutil.Process(pid).kill()
    told = sum(system.result(handle, 60) == index for index, handle in enumerate(handles))
    again = [at for call, _, at in read_marks(path)[0] if call == number and at > killed]
    return {"missing": count - told, "seconds": min(again, default=float("inf")) - killed}
