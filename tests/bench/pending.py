"""What pending calls weigh in the client: `python -m tests.bench.pending rss|trace SYSTEM REDIS FOLDER COUNT`."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import psutil

from tests.bench.jobs import noop
from tests.bench.systems import Place, System, system_class


def weigh(kind: str, make: Any) -> tuple[Any, float]:
    """What was made, and the bytes it takes."""
    process = psutil.Process()
    gc.collect()
    if kind == "trace":
        tracemalloc.start()
        made = make()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return made, size
    before = process.memory_info().rss
    made = make()
    gc.collect()
    return made, process.memory_info().rss - before


def of_qnb(system: Any, kind: str, count: int) -> dict[str, float]:
    """A Batch, pending since there is no worker; then its tables."""
    system.connect()
    batch, size = weigh(kind, lambda: system.session.map(noop, range(count)))
    assert batch.counts["queued"] == count, batch.counts
    found = {"bytes": size / count}
    if kind == "rss":
        import pandas as pd

        assert pd.DataFrame({"x": [1]}).shape == (1, 1)  # pandas is awake
        begun = time.perf_counter()
        table = batch.df
        found["df"] = time.perf_counter() - begun
        assert len(table) == count
        del table
        system.start()
        assert batch.results(120)[-1] == count - 1
        begun = time.perf_counter()
        table = batch.df
        found["df done"] = time.perf_counter() - begun
        assert int(table["result"].sum()) == count * (count - 1) // 2
        system.stop()
    return found


def of_peer(system: System, kind: str, count: int) -> dict[str, float]:
    """Single submits that nobody works on."""
    if hasattr(system, "executor"):
        for _ in range(4):
            system.executor.submit(time.sleep, 120)
    else:
        system.connect()
    for handle in range(50):
        system.submit("noop", handle)
    _, size = weigh(kind, lambda: system.submit_many(count))
    return {"bytes": size / count}


def main(kind: str, name: str, redis: str, folder: str, count: str) -> None:
    """Print what was found as JSON."""
    system = system_class(name)(Place(redis, Path(folder)))
    if name == "executor":
        system.start()
    measure = of_qnb if name.startswith("qnb") else of_peer
    try:
        print(json.dumps(measure(system, kind, int(count))), flush=True)
    finally:
        system.stop()
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
