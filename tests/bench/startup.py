"""Rows that start fresh interpreters: imports, cold scripts, new workers, and a batch of a million calls."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import Any

from tests.bench.bench import Bench
from tests.bench.client import Failed
from tests.bench.systems import Place, system_class
from tests.bench.systems.base import ROOT
from tests.bench.table import Figure, Line, beside

_TIMED = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"

# `import celery` loads next to nothing until a name of it is used; so what a client over Redis loads is compared too.
_QNB_CLIENT = "from qnb import Session; import qnb.brokers.redis.broker, qnb.backends.redis"
_CELERY_CLIENT = "from celery import Celery; import kombu.transport.redis, celery.backends.redis"


def _run(code: list[str], place: Place, timeout: float = 300, **settings: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1", **settings}
    done = subprocess.run(
        [sys.executable, *code], cwd=place.folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise Failed(f"{code[:2]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def imports(bench: Bench) -> list[Line]:
    """Fresh interpreters."""
    statements = ["import qnb", "import celery", _QNB_CLIENT, _CELERY_CLIENT]
    if importlib.util.find_spec("distributed"):
        statements.append("import distributed")
    if not importlib.util.find_spec("celery"):
        statements = [statement for statement in statements if "celery" not in statement]
        bench.note("celery is not installed: left out")
    place = bench.place()

    def measure(statement: str) -> float:
        return 1000 * float(_run(["-c", _TIMED.format(statement)], place))

    for statement in statements:
        measure(statement)  # once to have every .pyc
    found = bench.in_turn(statements, measure, 1 if bench.quick else max(9, bench.rounds))
    figures = {
        statement: Figure(f"`{statement.partition(';')[0]}`", values, "ms") for statement, values in found.items()
    }
    lines = [Line("import", "fresh interpreter", figures["import qnb"], most=80)]
    for mine, its, target in (
        ("import qnb", "import celery", {"most": 1 / 3}),
        ("import qnb", "import distributed", {"most": 1 / 3}),
        (_QNB_CLIENT, _CELERY_CLIENT, {"most": 1 / 3}),
    ):
        if its in figures:
            lines.append(beside("import", "fresh interpreter", figures[mine], figures[its], **target))
    return lines


def _cold_once(name: str, place: Place, told: dict[str, Any]) -> float:
    """Seconds from the start of the interpreter to the line it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **told["settings"]}
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", told["code"], *told["arguments"]], cwd=place.folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as script:  # fmt: skip
        assert script.stdout
        assert script.stderr
        line = script.stdout.readline()
        seconds = time.perf_counter() - begun
        if line.strip() != "7":
            raise Failed(f"{name}: the cold script printed {line!r}: {script.stderr.read()[-500:]}")
    return seconds


def cold(bench: Bench) -> list[Line]:
    """A script from its start to its first result, workers being up."""
    names = bench.here(("qnb-redis", "qnb-embedded", "celery", "dramatiq"))
    places = {name: bench.place() for name in names}
    clients, told = {}, {}
    try:
        for name in names:
            clients[name] = bench.client(name, places[name])
            client = clients[name].__enter__()
            client.ask("start")
            told[name] = client.ask("script")
            _cold_once(name, places[name], told[name])
        found = bench.in_turn(names, lambda name: _cold_once(name, places[name], told[name]))
    finally:
        for client in clients.values():
            client.__exit__(None, None, None)
    return _lines("cold", "cold script to first result", found, {"qnb-redis": 0.15, "qnb-embedded": 0.15})


def spawn(bench: Bench) -> list[Line]:
    """A worker from its start to the first result, the call being queued before."""

    def measure(name: str) -> float:
        with bench.client(name) as client:
            value = float(client.ask("spawn"))
        bench.say(f"spawn · {name}: {value:.3f} s")
        return value

    found = bench.in_turn(bench.here(("qnb-redis", "qnb-embedded", "celery", "dramatiq")), measure)
    return _lines("spawn", "worker spawn to first result", found, {"qnb-redis": 0.5, "qnb-embedded": 0.5})


def _lines(row: str, what: str, found: dict[str, list[float]], most: dict[str, float]) -> list[Line]:
    figures = {name: Figure(system_class(name).label, values, "s") for name, values in found.items()}
    lines = [Line(row, what, figures[name], most=limit) for name, limit in most.items() if name in figures]
    peers = [name for name in figures if not name.startswith("qnb")]
    lines += [beside(row, what, figures["qnb-redis"], figures[name]) for name in peers if "qnb-redis" in figures]
    return lines


def batch(bench: Bench) -> list[Line]:
    """A pending batch in the client."""
    count = bench.size(1_000_000, 2000)

    def measure(kind: str, name: str, calls: int) -> dict[str, float]:
        place = bench.place()
        arguments = ["-m", "tests.bench.pending", kind, name, place.redis, str(place.folder), str(calls)]
        found: dict[str, float] = json.loads(_run(arguments, place))
        bench.say(f"batch · {name}, {kind}: {found}")
        return found

    what = f"a Batch of {count:,} calls, pending"
    label = system_class("qnb-redis").label
    rounds = range(min(3, bench.rounds))
    measured = [measure("rss", "qnb-redis", count) for _ in rounds]
    traced = measure("trace", "qnb-redis", count)
    ours = Figure(label, [found["bytes"] for found in measured], "bytes a call (RSS)")
    lines = [
        Line("batch", what, ours, most=150),
        Line("batch", what, Figure(label, [traced["bytes"]], "bytes a call (tracemalloc)"), most=150),
        Line("batch", "its .df", Figure(label, [found["df"] for found in measured], "s"), most=2),
        Line("batch", ".df once all are done", Figure(label, [found["df done"] for found in measured], "s")),
    ]
    for name in bench.here(("celery", "executor")):
        peer = measure("rss", name, bench.size(5000 if name == "celery" else 100_000))
        figure = Figure(f"{system_class(name).label}, single submits", [peer["bytes"]], "bytes a call (RSS)")
        mine = Figure(label, [ours.median], ours.unit)
        lines.append(beside("batch", what, mine, figure))
    return lines
