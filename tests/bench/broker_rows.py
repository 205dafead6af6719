"""A row a broker: qnb with results in its session's mailbox, Celery on the same server, and the server's raw loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.bench import Bench
from tests.bench.table import Line, compare

RAW_LEAST = 0.4


@dataclass(frozen=True)
class Plan:
    """How many calls each gets: a rate does not depend on it. `least`: what qnb must reach of Celery's submits."""

    label: str  # of tests.services.BROKERS
    least: float | None = None
    raw: int = 10_000
    latency: int = 500
    celery: int = 1500
    celery_latency: int = 100
    celery_map: int = 20_000
    map: int = 100_000
    systems: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(f"{front}-{self.label}" for front in ("qnb", "raw", "celery"))
        object.__setattr__(self, "systems", names)


# What looks for news ten or twenty times a second has a latency of its own.
PLANS = (
    Plan("amqp", least=50),
    Plan("sqs", least=8, raw=2000, latency=50, celery=500, celery_latency=30, celery_map=5000),
    Plan("kafka", celery=500, celery_map=5000),
    Plan("zookeeper", raw=5000, celery=500, celery_map=5000),
    Plan("pubsub", raw=5000, latency=50, celery=500, celery_latency=30, celery_map=5000),
)


def measure(bench: Bench, plan: Plan) -> list[Line]:
    """Single submits, latency, and a map."""
    row, (ours, raw, celery) = plan.label, plan.systems
    with bench.clients(plan.systems) as clients:
        counts = {ours: 10_000, raw: plan.raw, celery: plan.celery}
        submits = bench.have_done(clients, plan.systems, "submits", count=_sizes(bench, counts))
        counts = {ours: plan.latency, raw: plan.latency, celery: plan.celery_latency}
        latency = bench.have_done(clients, plan.systems, "latency", count=_sizes(bench, counts))
        counts = {ours: plan.map, raw: plan.raw, celery: plan.celery_map}
        mapped = bench.have_done(clients, plan.systems, "mapped", count=_sizes(bench, counts, 2000))
    targets = {raw: {"least": RAW_LEAST}, celery: {"least": plan.least} if plan.least else {}}
    lines = compare(row, f"{bench.size(10_000):,} single submits and gathers", submits, "/s", targets)
    lines += compare(row, "a submit to its result, p50", latency, "ms", {})
    return lines + compare(row, f"map of {bench.size(plan.map, 2000):,}", mapped, "items/s", {})


def _sizes(bench: Bench, counts: dict[str, int], quick: int = 20) -> dict[str, int]:
    return {name: bench.size(count, quick) for name, count in counts.items()}


def row(plan: Plan) -> Callable[[Bench], list[Line]]:
    """The row of a broker."""

    def measured(bench: Bench) -> list[Line]:
        return measure(bench, plan)

    measured.__doc__ = f"{plan.label}: beside Celery on the same server, and the server's raw loop."
    return measured


ROWS = {plan.label: row(plan) for plan in PLANS}
