"""What is done with a system, inside its client process. Each returns plain numbers, and checks what came back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tests.bench.systems.base import System, cpu_seconds
from tests.bench.systems.ping_pong import Link


def start(system: System, apart: bool = False) -> float:
    """Workers up, client connected, some calls made; the seconds that took."""
    begun = time.perf_counter()
    system.start(apart)
    system.connect()
    for _ in range(3):
        assert [system.call(number) for number in range(10)] == list(range(10))
    return time.perf_counter() - begun


def submits(system: System, count: int) -> float:
    """Calls a second: single submits, then all results, in order."""
    begun = time.perf_counter()
    values = system.gather(system.submit_many(count))
    seconds = time.perf_counter() - begun
    assert list(values) == list(range(count))
    return count / seconds


def latency(system: System, count: int) -> float:
    """Milliseconds from a submit to its result, p50."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        value = system.call(number)
        times.append(time.perf_counter() - begun)
        assert value == number
    return sorted(times)[len(times) // 2] * 1000


def mapped(system: System, count: int) -> float:
    """Items a second of a map."""
    begun = time.perf_counter()
    values = system.map(count)
    seconds = time.perf_counter() - begun
    assert list(values) == list(range(count))
    return count / seconds


def payload(system: System, count: int, size: int) -> float:
    """MiB a second, in and out. No two payloads are the same, so that none can be sent once for all."""
    common = os.urandom(size - 8)
    data = [common + number.to_bytes(8, "big") for number in range(count)]
    begun = time.perf_counter()
    handles = [system.submit("echo", one) for one in data]
    values = [system.result(handle) for handle in handles]
    seconds = time.perf_counter() - begun
    assert values == data
    return 2 * count * size / 2**20 / seconds


def idle(system: System, seconds: float) -> dict[str, float]:
    """Percent of a core that the worker tree and the client use when there is nothing to do, and commands to Redis."""
    time.sleep(3)
    pids, link = system.pids(), Link(system.place.redis)
    begun = time.perf_counter()
    workers, client, commands = cpu_seconds(pids), time.process_time(), link.commands()
    time.sleep(seconds)
    passed = time.perf_counter() - begun
    return {
        "commands": (link.commands() - commands) / passed,
        "workers": 100 * (cpu_seconds(pids) - workers) / passed,
        "client": 100 * (time.process_time() - client) / passed,
    }


def leave(system: System) -> None:
    """Workers gone, client still there."""
    workers, system.workers = system.workers, []
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(10)


def script(system: System) -> dict[str, Any]:
    """The cold script, and what it needs to be told."""
    arguments = [system.url] if hasattr(system, "url") else []
    return {"code": system.script, "arguments": arguments, "settings": dict(system.settings())}


def spawn(system: System) -> float:
    """Seconds from the start of a worker to the first result, the call being queued before."""
    system.connect()
    handle = system.submit("noop", 1)
    if hasattr(system, "session"):
        system.session.flush()
    begun = time.perf_counter()
    system.start()
    assert system.result(handle) == 1
    return time.perf_counter() - begun


WORKS: dict[str, Callable[..., Any]] = {
    work.__name__: work for work in (start, submits, latency, mapped, payload, idle, leave, script, spawn)
}
