"""Outcomes as columns: cutting them, and reading them into Python objects."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable

from msgspec.structs import replace

from qnb.codec.payloads import slice_values
from qnb.message import Outcomes


def slice_outcomes(outcomes: Outcomes, start: int, stop: int) -> Outcomes:
    """The part about calls start … stop - 1, counted from the record's first."""
    times, count = outcomes.times, outcomes.count
    if times:
        times = times[8 * start : 8 * stop] + times[8 * (count + start) : 8 * (count + stop)]
    return replace(
        outcomes,
        first=outcomes.first + start,
        count=stop - start,
        states=outcomes.states[start:stop],
        values=slice_values(outcomes.values, start, stop),
        times=times,
        failures={i - start: f for i, f in outcomes.failures.items() if start <= i < stop},
        outputs={i - start: o for i, o in outcomes.outputs.items() if start <= i < stop},
        displays={i - start: d for i, d in outcomes.displays.items() if start <= i < stop},
    )


def read_times(data: bytes) -> array.array[float]:
    """Unix times: starts, then ends."""
    times = array.array("d", data)
    if sys.byteorder == "big":
        times.byteswap()
    return times


def spans_of(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as (first, count) of consecutive ones."""
    spans: list[tuple[int, int]] = []
    for index in sorted(indices):
        if spans and spans[-1][0] + spans[-1][1] == index:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((index, 1))
    return spans


def gaps(first: int, count: int, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of first … first + count - 1 that none of the (first, count) spans covers."""
    parts, start, stop = [], first, first + count
    for low, length in sorted(spans):
        if low >= stop:
            break
        if low > start:
            parts.append((start, low - start))
        start = max(start, low + length)
    if start < stop:
        parts.append((start, stop - start))
    return parts
