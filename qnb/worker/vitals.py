"""What a worker and its lanes take of the machine, as far as the machine tells."""

from __future__ import annotations

import os
from collections.abc import Iterable

from qnb import __version__


def vitals(pids: Iterable[int | None]) -> dict[str, object]:
    """`rss_bytes` and `cpu_total_seconds` of these processes together (None where /proc does not tell), `load` of the
    machine over a minute, its `cpus`, and the `version` of qnb."""
    memory, seconds, known = 0, 0.0, False
    for pid in {pid for pid in pids if pid}:
        try:
            with open(f"/proc/{pid}/statm") as file:
                memory += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):  # it has just ended, or there is no /proc
            continue
        known = True
    return {
        "rss_bytes": memory if known else None,
        "cpu_total_seconds": seconds if known else None,
        "load": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "version": __version__,
    }
