"""A backend out of the same table as qnb.brokers.table: scanned in the order of its keys, changed by compare-and-swap.

o/RUN/FIRST  b/NAME  r/RUN  x/RUN/FIRST/COUNT     until when it is kept, and what
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from msgspec import msgpack

from qnb.backends.base import RESULT_SECONDS
from qnb.backends.spans import join, touching
from qnb.brokers.table import Change, Table
from qnb.errors import BackendUnavailable
from qnb.message import RunRecord, Stored
from qnb.settings import parse_url

SWEEP_SECONDS = 60.0


class TableBackend(Table):
    """See Backend of the ports. Options: prefix and expires (seconds)."""

    scheme: ClassVar[str] = "table"
    durable: ClassVar[bool] = True
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self._expires = address.number("expires", RESULT_SECONDS)
        self._closed = False
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self.open(address)

    def _rows(self, front: str) -> list[tuple[str, Any]]:
        """What has not expired, by key."""
        if self._closed:
            raise BackendUnavailable(f"{self.url} is closed: open a new one")
        now = time.time()
        rows = [(key, *msgpack.decode(row)) for key, row in self.scan(front)]
        return [(key, value) for key, until, value in rows if until > now]

    def _put(self, rows: Sequence[tuple[str, Any]], *, replace: bool) -> list[bool]:
        """Which rows were put: all, or where there was none that has not expired."""
        self._sweep()
        until = time.time() + self._expires
        new: list[Change] = [(key, None, msgpack.encode((until, value))) for key, value in rows]
        done = list(self.swap(new))
        for at, (key, _, row) in enumerate(new):
            while not done[at]:
                old = next((found for name, found in self.scan(key) if name == key), None)
                if old is not None and not replace and msgpack.decode(old)[0] > time.time():
                    break
                done[at] = self.swap([(key, old, row)])[0]
        return done

    def _sweep(self) -> None:
        """Drop what has expired, about once a minute."""
        if time.monotonic() > self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS * random.uniform(1, 2)
            now = time.time()
            for front in ("o/", "b/", "r/", "x/"):
                self.swap([(key, row, None) for key, row in self.scan(front) if msgpack.decode(row)[0] <= now])

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        done = self._put([(f"o/{_word(o.run)}/{o.first:020d}", (o.count, o.data)) for o in outcomes], replace=False)
        return [one for one, new in zip(outcomes, done, strict=True) if not new]

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        found = [Stored(run, int(key.rpartition("/")[2]), *value) for key, value in self._rows(f"o/{_word(run)}/")]
        return found if spans is None else touching(found, join(spans))

    def save_run(self, record: RunRecord) -> None:
        self._put([(f"r/{_word(record.run)}/", msgpack.encode(record))], replace=True)

    def load_run(self, run: str) -> RunRecord | None:
        rows = self._rows(f"r/{_word(run)}/")
        return msgpack.decode(rows[0][1], type=RunRecord) if rows else None

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        records = [msgpack.decode(value, type=RunRecord) for _, value in self._rows("r/")]
        return sorted(records, key=lambda record: -record.created_at)[:limit]

    def forget_run(self, run: str) -> None:
        for kind in "orx":
            self.swap([(key, row, None) for key, row in self.scan(f"{kind}/{_word(run)}/")])

    def put_blob(self, key: str, data: bytes) -> None:
        self._put([(f"b/{_word(key)}/", bytes(data))], replace=True)

    def get_blob(self, key: str) -> bytes | None:
        return next((value for _, value in self._rows(f"b/{_word(key)}/")), None)

    def forget_blobs(self, keys: Sequence[str]) -> None:
        self.swap([(key, row, None) for name in keys for key, row in self.scan(f"b/{_word(name)}/")])

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        self._put([(f"x/{_word(run)}/{first}/{count}", None) for run, first, count in spans], replace=True)

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        parts = [key.split("/") for key, _ in self._rows("x/")]
        return [(unquote(run), int(first), int(count)) for _, run, first, count in parts]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.shut()


def _word(text: str) -> str:
    return quote(text, safe="")
