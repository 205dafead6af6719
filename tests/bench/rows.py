"""The rows of the table: what is measured, beside whom, and what must be reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tests.bench import broker_rows, startup
from tests.bench.bench import Bench
from tests.bench.client import Failed
from tests.bench.systems import system_class
from tests.bench.table import Figure, Line, compare

SLOW = ("celery", "celery-pickle", "dramatiq", "huey-redis", "huey-sqlite")


def _submits(bench: Bench, row: str, names: Sequence[str], targets: Mapping[str, Mapping[str, float]]) -> list[Line]:
    # The slow ones get fewer calls: theirs is a rate that does not depend on it.
    counts = {name: bench.size(1500 if name in SLOW else 10_000) for name in names}
    found = bench.work(names, "submits", count=counts)
    what = f"{bench.size(10_000):,} single submits and gathers"
    return compare(row, what, found, "/s", targets)


def redis_submits(bench: Bench) -> list[Line]:
    """Single submits over Redis."""
    names = ("qnb-redis", "celery", "executor", "dramatiq", "huey-redis")
    return _submits(bench, "redis-submits", names, {"celery": {"least": 100}, "executor": {"least": 4}})


def embedded_submits(bench: Bench) -> list[Line]:
    """Single submits on the embedded file."""
    names = ("qnb-embedded", "huey-sqlite", "executor")
    return _submits(bench, "embedded-submits", names, {"huey-sqlite": {"least": 50}, "executor": {"least": 3}})


def redis_latency(bench: Bench) -> list[Line]:
    """One submit to its result over Redis."""
    names = ("qnb-redis", "ping-pong", "celery", "dramatiq", "huey-redis")
    counts = {name: bench.size(200 if name in SLOW else 1000) for name in names}
    found = bench.work(names, "latency", count=counts)
    targets = {"ping-pong": {"most": 2.5}, "celery": {"most": 1 / 8}}
    return compare("redis-latency", "a submit to its result, p50", found, "ms", targets)


def embedded_latency(bench: Bench) -> list[Line]:
    """One submit to its result on the embedded file."""
    names = ("qnb-embedded", "executor", "huey-sqlite")
    counts = {name: bench.size(100 if name in SLOW else 1000) for name in names}
    found = bench.work(names, "latency", count=counts)
    return compare("embedded-latency", "a submit to its result, p50", found, "ms", {"executor": {"most": 3}})


def redis_map(bench: Bench) -> list[Line]:
    """A map over Redis."""
    count = bench.size(100_000, 2000)
    found = bench.work(("qnb-redis", "celery", "executor"), "mapped", count=count)
    what = f"map of {count:,}, outcome and state for each"
    return compare("redis-map", what, found, "items/s", {"celery": {"least": 10}})


def redis_payload(bench: Bench) -> list[Line]:
    """Large arguments and results over Redis."""
    size = bench.size(2**20, 2**16)
    names = ("qnb-redis", "celery-pickle", "executor")
    counts = {name: bench.size(50 if name == "celery-pickle" else 200, 5) for name in names}
    found = bench.work(names, "payload", count=counts, size=size)
    what = f"{bench.size(200, 5)} × {size / 2**20:g} MiB in and out"
    return compare("redis-payload", what, found, "MiB/s", {"celery-pickle": {"least": 2}})


def idle(bench: Bench) -> list[Line]:
    """What costs nothing when there is nothing to do."""
    seconds = bench.size(10, 1)
    lines = []
    for name in bench.here(("qnb-redis", "qnb-embedded", "celery", "dramatiq")):
        ours = name.startswith("qnb")
        label = system_class(name).label
        with bench.client(name) as client:
            client.ask("start")
            both = client.ask("idle", seconds=seconds)
            alone = None
            if ours:
                client.ask("leave")
                alone = client.ask("idle", seconds=seconds)
        bench.say(f"idle · {name}: {both}, without workers {alone}")
        cpu = Figure(label, [both["workers"]], "% of a core")
        lines.append(Line("idle", f"idle worker, {seconds} s", cpu, **({"most": 0.5} if ours else {})))
        if name != "qnb-embedded":
            commands = Figure(label, [both["commands"]], "commands/s")
            lines.append(Line("idle", "idle worker and session", commands))
        if alone and name == "qnb-redis":
            lines.append(Line("idle", "idle session", Figure(label, [alone["commands"]], "commands/s"), most=0))
    return lines


def crash(bench: Bench) -> list[Line]:
    """A worker of two is killed in the middle of a call."""
    from qnb.brokers.base import DEFAULT_LEASE

    count = bench.size(200, 40)
    what = f"{count} × 50 ms, one of two workers killed -9"
    lines = []
    names = {"qnb-redis": DEFAULT_LEASE + 15, "qnb-embedded": DEFAULT_LEASE + 15}
    if not bench.quick:
        names |= {"celery-reliable": 45.0, "executor": 5.0}
    for name in bench.here(tuple(names)):
        label, ours = system_class(name).label, name.startswith("qnb")
        with bench.client(name) as client:
            try:
                client.ask("start", apart=True)
                found = client.ask("kill_worker", count=count, patience=names[name])
            except Failed as failure:
                bench.note(str(failure))
                continue
        bench.say(f"crash · {name}: {found}")
        lost = max(found["missing"], found["results missing"])
        missing = Figure(label, [lost], f"missing after {names[name]:g} s")
        lines.append(Line("crash", what, missing, **({"most": 0} if ours else {})))
        if ours:
            late = Figure(label, [found["seconds"]], f"s to the last end (lease {DEFAULT_LEASE:g})")
            lines.append(Line("crash", what, late, most=DEFAULT_LEASE + 1))
            lines.append(Line("crash", what, Figure(label, [found["ran twice"]], "ran twice")))
    return lines


def lane(bench: Bench) -> list[Line]:
    """A process of a worker is killed in the middle of a call."""
    count = bench.size(200, 40)
    what = f"{count} × 50 ms, a lane killed -9"
    lines = []
    for name in ("qnb-redis", "qnb-embedded"):
        label = system_class(name).label
        seconds, missing = [], []
        for _ in range(min(3, bench.rounds)):
            with bench.client(name) as client:
                client.ask("start")
                found = client.ask("kill_lane", count=count)
            bench.say(f"lane · {name}: {found}")
            seconds.append(found["seconds"])
            missing.append(found["missing"])
        lines.append(Line("lane", what, Figure(label, seconds, "s until its call runs again"), most=1))
        lines.append(Line("lane", what, Figure(label, missing, "missing"), most=0))
    return lines


ROWS: dict[str, Callable[[Bench], list[Line]]] = {
    "redis-submits": redis_submits,
    "embedded-submits": embedded_submits,
    "redis-latency": redis_latency,
    "embedded-latency": embedded_latency,
    "redis-map": redis_map,
    "batch": startup.batch,
    "import": startup.imports,
    "idle": idle,
    "redis-payload": redis_payload,
    "crash": crash,
    "lane": lane,
    "cold": startup.cold,
    "spawn": startup.spawn,
    **broker_rows.ROWS,
}
