"""Many tasks while a worker is killed every few seconds: python -m tests.faults.soak [BROKER …] [--tasks 20000].

Prints a line a broker: what was submitted, what has an outcome, what ran twice, how many workers were killed. Exits
with 1 when an outcome is missing or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import qnb
from tests.faults.conftest import CASES, KEY, Ground, Workers, ground, kill_tree
from tests.faults.ledger import Log
from tests.services import Services

WORKERS, LANES = 3, 2


def marking(path: str, seconds: float) -> object:
    """A task that leaves a mark at its end."""

    def work(index: int) -> int:
        import os
        import time

        time.sleep(seconds)
        with open(path, "a") as file:
            file.write(f"E {index} {os.getpid()} {time.time()}\n")
        return index

    return work


def soak(place: Ground, options: argparse.Namespace, folder: Path) -> bool:
    """One broker; whether every task has its one outcome."""
    log, workers = Log(folder / "marks.txt"), Workers(folder)
    killed, begun = 0, time.monotonic()
    with contextlib.closing(qnb.Session(place.url, workers=0)) as session:
        try:
            running = workers.start(session, place.url, WORKERS, LANES)
            batch = session.map(marking(str(log.path), options.seconds), range(options.tasks))
            while not batch.wait(options.every) and time.monotonic() - begun < options.limit:
                kill_tree(running.pop(0).pid)
                killed += 1
                running += workers.start(session, place.url, 1, LANES)
            states = dict(batch.counts)
            wrong = [i for i, value in enumerate(batch.results()) if value != i] if batch.wait(0) else []
        finally:
            workers.stop()
    ends = [index for index, _, _ in log.marks("E")]
    missing = options.tasks - states.get("done", 0)
    print(
        f"soak {place.label}: {options.tasks} tasks of {options.seconds * 1000:g} ms, {killed} workers killed, "
        f"outcomes {states}, missing {missing}, wrong {len(wrong)}, run to the end twice {len(ends) - len(set(ends))}, "
        f"{time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return not missing and not wrong


def main() -> int:
    """Soak each broker that was named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("brokers", nargs="*", help=f"of {' '.join(case.label for case in CASES)}; default: all")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.005, help="that a task takes")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one broker")
    options = parser.parse_args()
    os.environ["QNB_KEY"] = KEY
    services, well = Services(), True
    try:
        for case in CASES:
            if not options.brokers or case.label in options.brokers:
                with tempfile.TemporaryDirectory() as folder:
                    well = soak(ground(case, case.place(services)), options, Path(folder)) and well
    finally:
        services.stop()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
