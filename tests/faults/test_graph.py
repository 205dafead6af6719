"""A graph of 2,000 calls whose kernel is killed: it goes on, and another process finds every outcome, none twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import qnb
from qnb.registry import partner_url
from tests.faults.conftest import Ground, Workers, kill_tree
from tests.faults.ledger import Log

WIDTH = 999  # of two layers, between one call at the top and one at the bottom
SMALL = 99  # where a call costs several round trips

OpenSession = Callable[[str], qnb.Session]

KERNEL = """
import sys, time, qnb

def node(path, index, *values):
    with open(path, "a") as file:
        file.write(f"E {index} 0 {time.time()}\\n")
    return 1 + max([each if type(each) is int else max(each) for each in values], default=0)

url, path, width, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
session = qnb.Session(url, workers=workers)
top = session.submit(node, path, 0)
upper = session.map(node, [path] * width, range(1, width + 1), [top] * width)
futures = upper[:]
lower = session.map(node, [path] * width, range(width + 1, 2 * width + 1), futures, futures[1:] + futures[:1])
bottom = session.map(node, [path], [2 * width + 1], [lower])
print(upper.run, lower.run, bottom.run, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["kernel", "kernel and a worker"])
def test_a_graph_outlives_its_kernel(
    place: Ground,
    open_session: OpenSession,
    workers: Workers,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    killed: str,
) -> None:
    width = WIDTH if place.label in ("sqlite", "redis") else SMALL
    if partner_url(place.url) == "rpc:":  # results that are to outlive a kernel need a place
        monkeypatch.setenv("QNB_BACKEND", f"sqlite:///{tmp_path}/results.db")
    session = open_session(place.url)
    own = place.label == "sqlite" and killed == "kernel"  # workers beside the kernel, which outlive it, too
    running = [] if own else workers.start(session, place.url, count=2)
    command = [sys.executable, "-c", KERNEL, place.url, str(log.path), str(width), "2" if own else "0"]
    kernel = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    runs = kernel.stdout.readline().split()
    log.wait_for(lambda: len(log.marks("E")) > width // 2)
    log.wait_for(lambda: all(session.backend.load_run(run) for run in runs))  # a run is known a moment after it began
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    at = time.time()
    if killed != "kernel":
        kill_tree(running[0].pid)
    upper, lower, bottom = (session.attach(run) for run in runs)
    assert bottom.results(90) == [4]
    assert upper.results(10) == [2] * width
    assert lower.results(10) == [3] * width
    ends = Counter(index for index, _, _ in log.marks("E"))
    ledger = log.ledger(f"{killed} kill -9 in a graph", list(ends), 2 * width + 2, at)
    assert set(ends) == set(range(2 * width + 2))
    assert ledger.lost == 0
    if killed == "kernel":
        assert set(ends.values()) == {1}, "none is run twice"
    if own:
        for name in session.workers.names:
            assert name.startswith("local-")
        session.control.shutdown()
