"""Spans of calls, for backends that look records up by where they begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from qnb.message import Stored


def join(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, count) spans as (first, end), in order, those that touch made one."""
    return near([(first, first + count) for first, count in sorted(spans) if count > 0], 0)


def near(windows: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Windows (first, end) in order, those not further apart than the gap made one."""
    joined: list[tuple[int, int]] = []
    for first, end in windows:
        if joined and first <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((first, end))
    return joined


def touching(records: Sequence[Stored], windows: Sequence[tuple[int, int]]) -> list[Stored]:
    """Those of the records that touch one of the windows, which `join` gave."""
    ends = [end for _, end in windows]
    kept = []
    for record in records:
        at = bisect_right(ends, record.first)  # the first window that ends behind where the record begins
        if at < len(windows) and windows[at][0] < record.first + record.count:
            kept.append(record)
    return kept
