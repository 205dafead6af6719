"""The backend inside one process. `memory:` and `memory://name`; for tests, and for work that need not be kept.

Backends of one name in one process share what they hold; it is gone when the last of them closes.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import ClassVar

from qnb.backends.base import RESULT_SECONDS
from qnb.brokers.memory.broker import memory_place
from qnb.errors import BackendUnavailable
from qnb.message import RunRecord, Stored
from qnb.settings import parse_url

_SWEEP_SECONDS = 60.0


class _Outcomes:
    """The records of one run. `widest` bounds how far before a span a record that touches it can begin."""

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.records: dict[int, Stored] = {}
        self.widest = 1
        self.expires_at = 0.0

    def add(self, record: Stored) -> bool:
        if record.first in self.records:
            return False
        self.records[record.first] = record
        if self.firsts and record.first < self.firsts[-1]:
            insort(self.firsts, record.first)
        else:
            self.firsts.append(record.first)
        self.widest = max(self.widest, record.count)
        return True

    def remove(self, record: Stored) -> None:
        if self.records.get(record.first) is record:
            del self.records[record.first]
            del self.firsts[bisect_left(self.firsts, record.first)]

    def touching(self, first: int, count: int) -> Iterator[Stored]:
        for position in range(bisect_left(self.firsts, first - self.widest + 1), len(self.firsts)):
            record = self.records[self.firsts[position]]
            if record.first >= first + count:
                return
            if record.first + record.count > first:
                yield record


class _Space:
    """What the backends of one name share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.outcomes: dict[str, _Outcomes] = {}
        self.runs: dict[str, tuple[RunRecord, float]] = {}
        self.blobs: dict[str, tuple[bytes, float]] = {}
        self.revoked: dict[tuple[str, int, int], float] = {}
        self.swept_at = time.monotonic()

    def forget(self, record: Stored) -> None:
        """Drop one record."""
        kept = self.outcomes.get(record.run)
        if kept is not None:
            kept.remove(record)
            if not kept.records:
                del self.outcomes[record.run]

    def sweep(self, now: float) -> None:
        """Drop what has expired, at most once a minute."""
        if now - self.swept_at < _SWEEP_SECONDS:
            return
        self.swept_at = now
        self.outcomes = {run: kept for run, kept in self.outcomes.items() if kept.expires_at > now}
        self.runs = {run: kept for run, kept in self.runs.items() if kept[1] > now}
        self.blobs = {key: kept for key, kept in self.blobs.items() if kept[1] > now}
        self.revoked = {span: until for span, until in self.revoked.items() if until > now}


_spaces: dict[tuple[str, str], _Space] = {}
_spaces_lock = threading.Lock()


class MemoryBackend:
    """Outcomes, runs and blobs of this process."""

    scheme: ClassVar[str] = "memory"
    durable: ClassVar[bool] = False
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.place = memory_place(url)
        self._expires = address.number("expires", RESULT_SECONDS)
        self._closed = False
        with _spaces_lock:
            self._shared = _spaces.setdefault(self.place, _Space())
            self._shared.users += 1

    @property
    def _space(self) -> _Space:
        if self._closed:
            raise BackendUnavailable(f"{self.url} is closed: open a new one")
        return self._shared

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        now = time.monotonic()
        refused = []
        with self._space.lock:
            self._space.sweep(now)
            for record in outcomes:
                kept = self._space.outcomes.get(record.run)
                if kept is None or kept.expires_at <= now:
                    kept = self._space.outcomes[record.run] = _Outcomes()
                kept.expires_at = now + self._expires
                if not kept.add(record):
                    refused.append(record)
        return refused

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        with self._space.lock:
            kept = self._space.outcomes.get(run)
            if kept is None or kept.expires_at <= time.monotonic():
                return []
            if spans is None:
                return [kept.records[first] for first in kept.firsts]
            found = {record.first: record for first, count in spans for record in kept.touching(first, count)}
        return [found[first] for first in sorted(found)]

    def save_run(self, record: RunRecord) -> None:
        with self._space.lock:
            self._space.runs[record.run] = (record, time.monotonic() + self._expires)

    def load_run(self, run: str) -> RunRecord | None:
        with self._space.lock:
            record, until = self._space.runs.get(run, (None, 0.0))
        return record if until > time.monotonic() else None

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        now = time.monotonic()
        with self._space.lock:
            records = [record for record, until in self._space.runs.values() if until > now]
        return sorted(records, key=lambda record: record.created_at, reverse=True)[:limit]

    def forget_run(self, run: str) -> None:
        with self._space.lock:
            self._space.runs.pop(run, None)
            self._space.outcomes.pop(run, None)
            for span in [span for span in self._space.revoked if span[0] == run]:
                del self._space.revoked[span]

    def put_blob(self, key: str, data: bytes) -> None:
        with self._space.lock:
            self._space.sweep(time.monotonic())
            self._space.blobs[key] = (bytes(data), time.monotonic() + self._expires)

    def forget_blobs(self, keys: Sequence[str]) -> None:
        with self._space.lock:
            for key in keys:
                self._space.blobs.pop(key, None)

    def get_blob(self, key: str) -> bytes | None:
        with self._space.lock:
            data, until = self._space.blobs.get(key, (None, 0.0))
        return data if until > time.monotonic() else None

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        until = time.monotonic() + self._expires
        with self._space.lock:
            self._space.revoked.update(dict.fromkeys(spans, until))

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        now = time.monotonic()
        with self._space.lock:
            return [span for span, until in self._space.revoked.items() if until > now]

    def close(self) -> None:
        with _spaces_lock:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            if not self._shared.users and _spaces.get(self.place) is self._shared:
                del _spaces[self.place]
