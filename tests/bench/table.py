"""What a run found: figures, the lines of the table, and how they are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.systems import system_class


@dataclass(frozen=True)
class Figure:
    """One thing measured several times."""

    label: str
    values: Sequence[float]
    unit: str

    @property
    def median(self) -> float:
        """What is compared."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{spread(self.values)} {self.unit}"


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure of qnb's, beside a peer's or by itself, and what it must reach."""

    row: str
    what: str
    ours: Figure
    peer: Figure | None = None
    least: float | None = None  # of the ratio where there is a peer, else of the figure
    most: float | None = None
    ratios: Sequence[float] = field(default=())

    @property
    def value(self) -> float:
        """What is held against the target. Rounds are paired: machines change from minute to minute."""
        return statistics.median(self.ratios) if self.peer else self.ours.median

    @property
    def reached(self) -> bool | None:
        """None where there is no target."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def target(self) -> str:
        """In words."""
        unit = "×" if self.peer else self.ours.unit
        sides = [f"≥ {self.least:,.3g} {unit}"] if self.least is not None else []
        sides += [f"≤ {self.most:,.3g} {unit}"] if self.most is not None else []
        return " and ".join(sides)

    def cells(self) -> list[str]:
        """As the table has it."""
        peer = f"{self.peer.label}: {self.peer}" if self.peer else ""
        ratio = f"{spread(self.ratios)} ×" if self.ratios else ""
        reached = {None: "", True: "yes", False: "NO"}[self.reached]
        return [self.what, f"{self.ours.label}: {self.ours}", peer, ratio, self.target, reached]

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "value": self.value, "target": self.target, "reached": self.reached}


def beside(row: str, what: str, ours: Figure, peer: Figure, **target: float) -> Line:
    """A line with a peer; the ratios are of figures taken in the same round."""
    ratios = [mine / its if its else math.inf for mine, its in zip(ours.values, peer.values, strict=True)]
    return Line(row, what, ours, peer, ratios=ratios, **target)


def compare(
    row: str, what: str, found: Mapping[str, Sequence[float]], unit: str, targets: Mapping[str, Mapping[str, float]]
) -> list[Line]:
    """One line for each peer; the first system found is qnb."""
    figures = [(name, Figure(system_class(name).label, values, unit)) for name, values in found.items()]
    if not figures or not figures[0][0].startswith("qnb"):
        return []
    ours = figures[0][1]
    lines = [beside(row, what, ours, figure, **targets.get(name, {})) for name, figure in figures[1:]]
    return lines or [Line(row, what, ours)]


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}".removesuffix(".")


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    if len(values) == 1 or min(values) == max(values):
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def markdown(lines: Sequence[Line]) -> str:
    """The table."""
    heads = ["measured", "qnb", "beside it", "qnb ÷ peer", "must reach", "reached"]
    rows = [heads, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    rows.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join(text)
