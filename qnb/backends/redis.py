"""Redis as a result backend.

    P out:<run>     hash    first → count (4 bytes, big-endian) and the record's data
    P starts:<run>  bits    32 + first is set for each record; below 32: the bit lengths of all counts in the run
    P runs          zset    run → when it was created
    P run:<run>     string  the run's record
    P blob:<key>    string
    P revoked       zset    run:first:count → when it is forgotten

The bits are what makes a look-up by span exact and cheap: a record that touches calls f … f + c - 1 starts before
f + c, and not earlier than the longest record of the run reaches. They cost one command a record.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

from msgspec import msgpack

from qnb.backends.base import RESULT_SECONDS
from qnb.brokers.redis.broker import base_of, client_options
from qnb.brokers.redis.client import BACKEND, Client
from qnb.brokers.redis.link import Command, target_of
from qnb.brokers.redis.server import check_server
from qnb.brokers.redis.settle import HEAD_BITS, Home, check_size, settle_command
from qnb.message import RunRecord, Stored
from qnb.settings import parse_url

_STORE_RECORDS = 500
_FETCH_FIELDS = 64
_FETCH_COMMANDS = 16


class RedisBackend:
    """See Backend of the ports. Options: prefix, expires (seconds), and what redis_link knows."""

    scheme: ClassVar[str] = "redis"
    durable: ClassVar[bool] = True
    blobs: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self.url = str(address)
        self.base = base_of(address)
        self.expires = max(1, round(address.number("expires", RESULT_SECONDS) * 1000))
        self._client = Client(target_of(address), BACKEND, *client_options(address))
        self._client.connect()
        try:
            server = check_server(self._client)
        except BaseException:
            self._client.close()
            raise
        self.home = Home(self._client.target, server, self.base, self.expires)

    # ------------------------------------------------------------ outcomes

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        refused: list[Stored] = []
        for at in range(0, len(outcomes), _STORE_RECORDS):
            part = outcomes[at : at + _STORE_RECORDS]
            refused += [part[position] for position in self._client.one(*settle_command(self.base, self.home, part))]
        return refused

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        found: list[Stored] = []
        starts = self._starts(run, spans)
        commands: list[Command] = [
            ("HMGET", f"{self.base}out:{run}", *starts[at : at + _FETCH_FIELDS])
            for at in range(0, len(starts), _FETCH_FIELDS)
        ]
        at = 0
        for step in range(0, len(commands), _FETCH_COMMANDS):
            for values in self._client.all(commands[step : step + _FETCH_COMMANDS]):
                for value in values:
                    if value is not None:
                        count = int.from_bytes(value[:4], "big")
                        found.append(Stored(run, starts[at], count, value[4:]))
                    at += 1
        return found if spans is None else touching(found, spans)

    def _starts(self, run: str, spans: Sequence[tuple[int, int]] | None) -> list[int]:
        """Where records begin that may touch the spans, in order."""
        key = f"{self.base}starts:{run}"
        if spans is None:
            return _set_bits(self._client.one("GET", key) or b"", 0)
        if not spans:
            return []
        head = self._client.one("GETRANGE", key, 0, HEAD_BITS // 8 - 1)
        longest = 1 << max((bit for bit in range(HEAD_BITS) if _bit(head, bit)), default=0)
        low = max(0, min(first for first, _ in spans) - longest)
        high = max(first + count for first, count in spans)
        skip = (low + HEAD_BITS) // 8
        bits = self._client.one("GETRANGE", key, skip, (high + HEAD_BITS) // 8)
        all_starts = _set_bits(bits, skip * 8)
        wanted: set[int] = set()
        for first, count in spans:
            wanted.update(all_starts[bisect_left(all_starts, first - longest) : bisect_left(all_starts, first + count)])
        return sorted(wanted)

    # ------------------------------------------------------------ runs

    def save_run(self, record: RunRecord) -> None:
        data = msgpack.encode(record)
        forgotten = (time.time() - self.expires / 1000) * 1000
        self._client.all(
            (
                ("SET", f"{self.base}run:{record.run}", data, "PX", self.expires),
                ("ZADD", f"{self.base}runs", round(record.created_at * 1000), record.run),
                ("PEXPIRE", f"{self.base}out:{record.run}", self.expires),
                ("PEXPIRE", f"{self.base}starts:{record.run}", self.expires),
                ("ZREMRANGEBYSCORE", f"{self.base}runs", "-inf", round(forgotten)),
            )
        )

    def load_run(self, run: str) -> RunRecord | None:
        data = self._client.one("GET", f"{self.base}run:{run}")
        return None if data is None else msgpack.decode(data, type=RunRecord)

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        if limit <= 0:
            return []
        names = self._client.one("ZREVRANGE", f"{self.base}runs", 0, limit - 1)
        if not names:
            return []
        records = self._client.one("MGET", *(f"{self.base}run:{name.decode()}" for name in names))
        return [msgpack.decode(data, type=RunRecord) for data in records if data is not None]

    def forget_run(self, run: str) -> None:
        gone = [
            r for r in self._client.one("ZRANGE", f"{self.base}revoked", 0, -1) if r.rsplit(b":", 2)[0] == run.encode()
        ]
        commands: list[Command] = [("DEL", *(f"{self.base}{kind}:{run}" for kind in ("out", "starts", "run")))]
        commands.append(("ZREM", f"{self.base}runs", run))
        if gone:
            commands.append(("ZREM", f"{self.base}revoked", *gone))
        self._client.all(commands)

    # ------------------------------------------------------------ blobs and revocations

    def put_blob(self, key: str, data: bytes) -> None:
        check_size(len(data), f"blob {key}")
        # A second put changes nothing, but what is used again lives on.
        name = f"{self.base}blob:{key}"
        if not self._client.one("PEXPIRE", name, self.expires):
            self._client.one("PSETEX", name, self.expires, data)  # the last argument may be large, see redis_link

    def get_blob(self, key: str) -> bytes | None:
        data: bytes | None = self._client.one("GET", f"{self.base}blob:{key}")
        return data

    def forget_blobs(self, keys: Sequence[str]) -> None:
        self._client.all([("DEL", f"{self.base}blob:{key}") for key in keys])

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        if spans:
            until = round(time.time() * 1000) + self.expires
            pairs = [part for run, first, count in spans for part in (until, f"{run}:{first}:{count}")]
            self._client.one("ZADD", f"{self.base}revoked", *pairs)

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        now = round(time.time() * 1000)
        key = f"{self.base}revoked"
        found = self._client.all((("ZREMRANGEBYSCORE", key, "-inf", now), ("ZRANGE", key, 0, -1)))[1]
        parts = (entry.decode().rsplit(":", 2) for entry in found)
        return [(run, int(first), int(count)) for run, first, count in parts]

    def close(self) -> None:
        self._client.close()


def _bit(data: bytes, bit: int) -> bool:
    return bit // 8 < len(data) and bool(data[bit // 8] & (128 >> bit % 8))


def _set_bits(data: bytes, offset: int) -> list[int]:
    """The records' starts in a piece of the bits that begins at bit `offset`."""
    starts: list[int] = []
    for match in re.finditer(rb"[^\0]", data):
        at = offset + match.start() * 8 - HEAD_BITS
        byte = match[0][0]
        if at >= 0:
            starts.extend(at + bit for bit in range(8) if byte & (128 >> bit))
    return starts


def touching(records: Sequence[Stored], spans: Sequence[tuple[int, int]]) -> list[Stored]:
    """Those of the records, sorted by `first`, that touch one of the spans."""
    merged: list[list[int]] = []  # disjoint, so that the first one ending after a record begins decides
    for first, count in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], first + count)
        else:
            merged.append([first, first + count])
    ends = [end for _, end in merged]
    kept = []
    for record in records:
        at = bisect_left(ends, record.first + 1)
        if at < len(merged) and merged[at][0] < record.first + record.count:
            kept.append(record)
    return kept
