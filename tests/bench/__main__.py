"""`python -m tests.bench [--rows NAME,…] [--rounds N] [--quick] [--json FILE]`: prints the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.client import Failed
from tests.bench.rows import ROWS
from tests.bench.table import Line, markdown

_VERSIONS = (
    *("qnb", "celery", "dramatiq", "huey", "redis", "hiredis"),
    *("pika", "boto3", "confluent-kafka", "kazoo", "google-cloud-pubsub"),
)


def machine(bench: Bench) -> str:
    """What all this was measured on."""
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    servers = [line.partition(": up in")[0].partition(" (")[0] for line in bench.services.lines if ": up in" in line]
    software = [f"{platform.python_implementation()} {platform.python_version()}", *servers, *found]
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {load}; {'; '.join(software)}"


def run(rows: Sequence[str], rounds: int, quick: bool) -> tuple[Bench, list[Line]]:
    """Measure rows; what was found, and the run with its notes."""
    bench, lines = Bench(rounds, quick), []
    try:
        for row in rows:
            bench.say(f"{row}: {ROWS[row].__doc__}")
            try:
                lines += ROWS[row](bench)
            except Failed as failure:
                bench.note(f"{row} could not be measured: {failure}")
    finally:
        bench.services.stop()
    return bench, lines


def main() -> int:
    """Exit code 0 when everything asked for was measured; a target missed is no failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured, in turn with its peers")
    parser.add_argument("--quick", action="store_true", help="one round of next to nothing: only shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured, as JSON")
    options = parser.parse_args()
    rows = [row for row in options.rows.split(",") if row]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    begun = time.monotonic()
    bench, lines = run(rows, options.rounds, options.quick)
    took = f"rounds: {bench.rounds}, {time.monotonic() - begun:.0f} s; median (lowest–highest)"
    print(f"{machine(bench)}; {took}\n")
    print(markdown(lines))
    for note in bench.notes:
        print(f"\nNot measured: {note}")
    if options.json:
        data = {"machine": machine(bench), "lines": [line.record() for line in lines], "notes": bench.notes}
        options.json.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    measured = {line.row for line in lines}
    return 0 if measured == set(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
