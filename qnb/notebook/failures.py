"""Failures grouped by exception, anew as they come but never at the cost of the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from qnb.notebook.snapshot import BatchLike

# The share of one core's time that grouping may take: with very many failures it is done the more seldom.
SHARE = 0.005


class GroupedFailures:
    """The failures of a live batch as (class, how many, one message), most first."""

    def __init__(self, batch: BatchLike) -> None:
        self._batch = batch
        self._groups: Sequence[tuple[str, int, str]] = ()
        self._number = 0
        self._not_before = 0.0
        self._stale = False

    def groups(self, counts: Mapping[str, int] | None = None) -> Sequence[tuple[str, int, str]]:
        """As of now, or of a moment ago. `counts` spares counting where it is done."""
        counts = self._batch.counts if counts is None else counts
        number = counts.get("failed", 0) + counts.get("lost", 0)
        self._stale = number != self._number
        begun = time.monotonic()
        if self._stale and begun >= self._not_before:
            self._groups = tuple(self._batch.failures_grouped()) if number else ()
            self._number, self._stale = number, False
            ended = time.monotonic()
            self._not_before = ended + (ended - begun) / SHARE
        return self._groups

    def due(self) -> float:
        """`time.monotonic()` from which there is something new to show."""
        return self._not_before if self._stale else math.inf
