"""Outcomes, runs and blobs in Apache Cassandra, or what speaks its protocol."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from msgspec import msgpack

from qnb.backends.base import RESULT_SECONDS
from qnb.backends.cassandra_link import Link
from qnb.backends.spans import join, near, touching
from qnb.message import RunRecord, Stored
from qnb.settings import parse_url

MOST_SECONDS = 20 * 365 * 86400  # a TTL may not be longer
# A run's outcomes lie in so many partitions, by where they start. Who is first is agreed upon a partition: few make
# those wait who store side by side, many make a batch fall into as many agreements.
BUCKETS = 16
STRETCH = 16
CLAIM_RECORDS = 128
CLAIM_BYTES = 64 * 1024
# An agreement writes its data three times: what is larger is written before, and only its name is agreed upon.
INLINE_BYTES = 8 * 1024
CHUNK_BYTES = 512 * 1024
CHUNKS_AT_ONCE = 8
MARK_SECONDS = 600.0

_CLAIM = (
    "INSERT INTO {outcomes} (place, run, bucket, first, count, parts, claim, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "IF NOT EXISTS USING TTL ?"
)
_CLAIMED = "SELECT first, claim FROM {outcomes} WHERE place = ? AND run = ? AND bucket = ? AND first IN ?"
_OUTCOMES = (
    "SELECT first, count, parts, claim, data FROM {outcomes} "
    "WHERE place = ? AND run = ? AND bucket IN ? AND first > ? AND first < ?"
)
_WRITTEN = (
    "SELECT bucket, parts, claim, first, WRITETIME(count) FROM {outcomes} WHERE place = ? AND run = ? AND bucket IN ?"
)
_FORGET = "DELETE FROM {outcomes} USING TIMESTAMP ? WHERE place = ? AND run = ? AND bucket = ?"
_CHUNK = "INSERT INTO {chunks} (place, name, part, parts, data) VALUES (?, ?, ?, ?, ?) USING TTL ?"


class CassandraBackend:
    """`cassandra://user:password@host1:9042,host2/keyspace`; the keyspace and the tables are made when missing.

    Options of the URL:

        expires=604800            seconds that all is kept, as the TTL of each row; entry_ttl= is the same
        prefix=NAME               keeps places apart within the same tables: it is part of every key
        consistency=LOCAL_QUORUM  of reads and writes; read_consistency= and write_consistency= for one of them,
                                  serial_consistency= for the agreement on who was first
        table_prefix=qnb_         what the tables' names begin with
        replication=1             of a keyspace that is made: 3 for one datacenter, or dc1:3,dc2:2
        create_tables=false       never make anything: the user has no right to
        protocol_version=3        for servers before 2.2; found by trying when it is not given
        datacenter=NAME           the one whose servers are asked; else that of the first host
        secure_bundle=FILE        the bundle of a managed service, in place of hosts
        ssl=true, ssl_ca=, ssl_cert=, ssl_key=, ssl_check_hostname=false
        timeout=10                seconds for one statement

    The first outcome of a call is agreed upon by the servers (a lightweight transaction), many records of a partition
    at a time. An outcome is one sealed record of a range of calls, in columns: states, values, tracebacks, worker,
    times and attempt; so what Celery calls extended results is there without columns of its own.

    Several processes that make the tables at the same moment, on several servers, may confuse Cassandra's schema: start
    one first, once.
    """

    scheme: ClassVar[str] = "cassandra"
    durable: ClassVar[bool] = True
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.place = address.options.get("prefix", "qnb")
        seconds = address.number("expires", address.number("entry_ttl", RESULT_SECONDS))
        # The servers count whole seconds, and the one that has begun as a whole one.
        self._ttl = min(MOST_SECONDS, max(0, math.ceil(seconds)) + 1)
        self._marked: dict[tuple[str, int], float] = {}
        self._link = Link(address)

    # ------------------------------------------------------------ outcomes

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        token = secrets.token_hex(8)
        unique: dict[tuple[str, int], Stored] = {}
        for record in outcomes:
            unique.setdefault((record.run, record.first), record)
        self._mark(unique.values())
        large = [record for record in unique.values() if len(record.data) > INLINE_BYTES]
        self._put_chunks((self._name(record.run, record.first, token), record.data) for record in large)
        new = self._claim_all(list(_batches(unique.values())), token)
        lost = [self._name(r.run, r.first, token) for r in large if (r.run, r.first) not in new]
        if lost:
            self._link.run("DELETE FROM {chunks} WHERE place = ? AND name = ?", [(self.place, name) for name in lost])
        refused = []
        for record in outcomes:
            if (record.run, record.first) in new:
                new.remove((record.run, record.first))
            else:
                refused.append(record)
        return refused

    def _claim_all(self, batches: list[list[Stored]], token: str) -> set[tuple[str, int]]:
        """Agree on the batches, side by side; those refused in part are tried again without that part."""
        new: set[tuple[str, int]] = set()
        while batches:
            answers = self._link.all([self._claim(batch, token) for batch in batches], list)
            again = []
            for batch, answer in zip(batches, answers, strict=True):
                if answer[0][0]:
                    new.update((record.run, record.first) for record in batch)
                    continue
                kept = self._claimed(batch)
                # Ours may be there already: an agreement that was reached, and whose answer was lost.
                new.update((record.run, record.first) for record in batch if kept.get(record.first) == token)
                if rest := [record for record in batch if record.first not in kept]:
                    again.append(rest)
            batches = again
        return new

    def _claim(self, batch: list[Stored], token: str) -> Any:
        rows = []
        for record in batch:
            inline = len(record.data) <= INLINE_BYTES
            parts = 0 if inline else _parts(record.data)
            where = (self.place, record.run, _bucket(record.first), record.first)
            rows.append((_CLAIM, (*where, record.count, parts, token, record.data if inline else None, self._ttl)))
        return self._link.batch(rows)

    def _claimed(self, batch: list[Stored]) -> dict[int, str]:
        """Which of a batch's calls have an outcome, and whose."""
        first = batch[0]
        values = (self.place, first.run, _bucket(first.first), [record.first for record in batch])
        return dict(self._link.rows(_CLAIMED, values))

    def _mark(self, records: Iterable[Stored]) -> None:
        """Note which widths of record a run has, so that a span is found; not anew for each record."""
        now = time.monotonic()
        if len(self._marked) > 10_000:
            self._marked.clear()
        widths = {(record.run, 1 << max(record.count - 1, 0).bit_length()) for record in records}
        due = [pair for pair in widths if self._marked.get(pair, -math.inf) < now]
        if due:
            # Kept a little longer than what it is to find.
            every = min(MARK_SECONDS, self._ttl / 8)
            ttl = min(MOST_SECONDS, self._ttl + math.ceil(every) + 1)
            query = "INSERT INTO {widths} (place, run, width) VALUES (?, ?, ?) USING TTL ?"
            self._link.run(query, [(self.place, run, width, ttl) for run, width in due])
            self._marked |= dict.fromkeys(due, now + every)

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        everywhere = list(range(BUCKETS))
        if spans is None:
            return self._fetch(run, [(everywhere, -1, 2**62)])
        windows = join(spans)
        found = self._link.rows("SELECT width FROM {widths} WHERE place = ? AND run = ?", (self.place, run))
        if not found or not windows:
            return []
        widest = max(width for (width,) in found)
        places = []
        for low, end in near([(first - widest, end) for first, end in windows], BUCKETS * STRETCH):
            buckets = everywhere if end - low > BUCKETS * STRETCH else sorted({_bucket(n) for n in range(low + 1, end)})
            places.append((buckets, low, end))
        return touching(self._fetch(run, places), windows)

    def _fetch(self, run: str, places: Sequence[tuple[list[int], int, int]]) -> list[Stored]:
        values = [(self.place, run, buckets, low, end) for buckets, low, end in places]
        rows = sorted({row[0]: row for part in self._link.rows_of(_OUTCOMES, values, 1000) for row in part}.values())
        names = [self._name(run, first, token) for first, _, parts, token, _ in rows if parts]
        chunks = self._get_chunks(names)
        records = []
        for first, count, parts, token, data in rows:
            whole = chunks.get(self._name(run, first, token)) if parts else data
            if whole is not None:  # else it has expired in this moment
                records.append(Stored(run, first, count, whole))
        return records

    def _name(self, run: str, first: int, token: str) -> str:
        return f"outcome:{run}:{first}:{token}"

    # ------------------------------------------------------------ runs

    def save_run(self, record: RunRecord) -> None:
        data = msgpack.encode(record)
        values = (self.place, record.run, record.created_at, data, self._ttl)
        for table in ("runs", "history"):
            query = f"INSERT INTO {{{table}}} (place, run, created_at, record) VALUES (?, ?, ?, ?) USING TTL ?"
            self._link.run(query, [values])

    def load_run(self, run: str) -> RunRecord | None:
        rows = self._link.rows("SELECT record FROM {runs} WHERE place = ? AND run = ?", (self.place, run))
        return msgpack.decode(rows[0][0], type=RunRecord) if rows else None

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        if limit <= 0:
            return []
        rows = self._link.rows("SELECT record FROM {history} WHERE place = ? LIMIT ?", (self.place, limit), 1000)
        return [msgpack.decode(data, type=RunRecord) for (data,) in rows]

    def forget_run(self, run: str) -> None:
        # As of when it was written, and not as of now: where the servers' clock is behind ours, what is stored next
        # would be taken for older than this.
        written: dict[int, int] = {}
        names = []
        for bucket, parts, token, first, at in self._link.rows(_WRITTEN, (self.place, run, list(range(BUCKETS)))):
            written[bucket] = max(at, written.get(bucket, at))
            if parts:
                names.append((self.place, self._name(run, first, token)))
        self._link.run(_FORGET, [(at, self.place, run, bucket) for bucket, at in written.items()])
        self._link.run("DELETE FROM {chunks} WHERE place = ? AND name = ?", names)
        record = self.load_run(run)
        if record is not None:
            history = "DELETE FROM {history} WHERE place = ? AND created_at = ? AND run = ?"
            self._link.run(history, [(self.place, record.created_at, run)])
        for table in ("runs", "revocations"):  # and not the widths, which do no harm: others hold them for noted
            self._link.run(f"DELETE FROM {{{table}}} WHERE place = ? AND run = ?", [(self.place, run)])

    # ------------------------------------------------------------ blobs and revocations

    def put_blob(self, key: str, data: bytes) -> None:
        name = f"blob:{key}"
        query = "SELECT TTL(data) FROM {chunks} WHERE place = ? AND name = ? AND part = 0"
        left = self._link.rows(query, (self.place, name))
        # Put anew only when half of its time is over: a function is put by every session, and is not sent each time.
        if not left or (left[0][0] or 0) < self._ttl / 2:
            self._put_chunks([(name, data)])

    def get_blob(self, key: str) -> bytes | None:
        name = f"blob:{key}"
        return self._get_chunks([name]).get(name)

    def forget_blobs(self, keys: Sequence[str]) -> None:
        query = "DELETE FROM {chunks} WHERE place = ? AND name = ?"
        self._link.run(query, [(self.place, f"blob:{key}") for key in keys])

    def _put_chunks(self, named: Iterable[tuple[str, bytes]]) -> None:
        """Store bytes in pieces; the first piece last, so that where it is, all are."""
        heads = []
        for name, data in named:
            parts = _parts(data)
            rows = [
                (self.place, name, part, parts, data[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES], self._ttl)
                for part in range(parts)
            ]
            heads.append(rows.pop(0))
            for start in range(0, len(rows), CHUNKS_AT_ONCE):
                self._link.run(_CHUNK, rows[start : start + CHUNKS_AT_ONCE])
        self._link.run(_CHUNK, heads)

    def _get_chunks(self, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of those that are there as a whole."""
        found = {}
        query = "SELECT parts, data FROM {chunks} WHERE place = ? AND name = ?"
        for start in range(0, len(names), CHUNKS_AT_ONCE):
            part = names[start : start + CHUNKS_AT_ONCE]
            answers = self._link.rows_of(query, [(self.place, name) for name in part], CHUNKS_AT_ONCE)
            for name, rows in zip(part, answers, strict=True):
                if rows and len(rows) == rows[0][0]:
                    found[name] = b"".join(data for _, data in rows)
        return found

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        query = "INSERT INTO {revocations} (place, run, first, count, kept) VALUES (?, ?, ?, ?, true) USING TTL ?"
        self._link.run(query, [(self.place, *span, self._ttl) for span in spans])

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        query = "SELECT run, first, count FROM {revocations} WHERE place = ?"
        return [(run, first, count) for run, first, count in self._link.rows(query, (self.place,))]

    def close(self) -> None:
        self._link.close()


def _bucket(first: int) -> int:
    return first // STRETCH % BUCKETS


def _parts(data: bytes) -> int:
    return max(1, -(-len(data) // CHUNK_BYTES))


def _batches(records: Iterable[Stored]) -> Iterable[list[Stored]]:
    """Records of one partition each, as many as one agreement is to have."""
    batches: dict[tuple[str, int], list[Stored]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for record in records:
        key = (record.run, _bucket(record.first))
        size = len(record.data) if len(record.data) <= INLINE_BYTES else 0
        batch = batches.setdefault(key, [])
        if batch and (len(batch) == CLAIM_RECORDS or sizes[key] + size > CLAIM_BYTES):
            yield batch
            batch = batches[key] = []
            sizes[key] = 0
        batch.append(record)
        sizes[key] = sizes.get(key, 0) + size
    yield from batches.values()
