"""The tables of the embedded file, written down once: the broker's own, and those it shares with the SQL backend.

The broker stores outcomes in the same transaction that acks, and must not import SQLAlchemy for it; the backend
builds its tables from the same columns, so that the two cannot drift.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qnb.errors import ConfigurationError
from qnb.message import Stored

# Name → columns as (name, type, may be null), then the primary key. Types: text, integer, real, blob.
BACKEND_TABLES: dict[str, tuple[tuple[tuple[str, str, bool], ...], tuple[str, ...]]] = {
    "outcomes": (
        (
            ("run", "text", False),
            ("first", "integer", False),
            ("count", "integer", False),
            ("expires_at", "real", False),
            ("data", "blob", False),
        ),
        ("run", "first"),
    ),
    # What widths of record a run has and when they expire: a span is found, and the expired are swept, without an
    # index of outcomes for either. Widths are powers of two.
    "extents": (
        (("run", "text", False), ("width", "integer", False), ("expires_at", "real", False)),
        ("run", "width", "expires_at"),
    ),
    "runs": (
        (
            ("run", "text", False),
            ("kind", "text", False),
            ("name", "text", False),
            ("count", "integer", True),
            ("created_at", "real", False),
            ("session", "text", False),
            ("expires_at", "real", False),
            ("data", "blob", False),
        ),
        ("run",),
    ),
    "blobs": ((("name", "text", False), ("expires_at", "real", False), ("data", "blob", False)), ("name",)),
    "revocations": (
        (
            ("run", "text", False),
            ("first", "integer", False),
            ("count", "integer", False),
            ("expires_at", "real", False),
        ),
        ("run", "first", "count"),
    ),
}

# `ready` is what can be taken now, in the order in which it is taken (rank = -priority; ids grow with time). `later` is
# what falls due: delayed messages, and those on a lease (`held`), by when that is over. A message is one row in one of
# the two, and (due, id) names a lease. A large body has a row of its own, which taking and extending do not touch.
# `notes` are numbered by mailbox.
_BROKER_TABLES = """
CREATE TABLE IF NOT EXISTS {p}ready(
  queue TEXT NOT NULL, rank INTEGER NOT NULL, id INTEGER NOT NULL, deliveries INTEGER NOT NULL, body BLOB,
  PRIMARY KEY(queue, rank, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {p}later(
  due REAL NOT NULL, id INTEGER NOT NULL, held INTEGER NOT NULL, queue TEXT NOT NULL, rank INTEGER NOT NULL,
  deliveries INTEGER NOT NULL, body BLOB, PRIMARY KEY(due, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {p}bodies(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS {p}dead(id INTEGER PRIMARY KEY, queue TEXT NOT NULL, reason TEXT NOT NULL, body BLOB);
CREATE INDEX IF NOT EXISTS {p}dead_queue ON {p}dead(queue);
CREATE TABLE IF NOT EXISTS {p}notes(
  peer TEXT NOT NULL, id INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY(peer, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {p}peers(
  peer TEXT PRIMARY KEY, mailbox INTEGER NOT NULL, read_at REAL NOT NULL, present_until REAL NOT NULL DEFAULT 0,
  info BLOB NOT NULL DEFAULT x'') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {p}queues(name TEXT PRIMARY KEY, lease REAL NOT NULL) WITHOUT ROWID
"""


def table_prefix(option: str | None) -> str:
    """What stands before every table's name: the `prefix` of the URL, or qnb_."""
    if option is None:
        return "qnb_"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", option):
        raise ConfigurationError(f"prefix={option!r} cannot begin a table's name: use letters, digits and _ only")
    return option


def backend_statements(prefix: str) -> list[str]:
    """CREATE TABLE of what the SQL backend keeps, in SQLite's words."""
    made = []
    for name, (columns, key) in BACKEND_TABLES.items():
        parts = [f"{column} {kind.upper()}{'' if null else ' NOT NULL'}" for column, kind, null in columns]
        # Small rows that are looked up by key; a blob is better off in a table of its own row ids.
        tail = "" if name == "blobs" else " WITHOUT ROWID"
        columns_and_key = ", ".join([*parts, f"PRIMARY KEY ({', '.join(key)})"])
        made.append(f"CREATE TABLE IF NOT EXISTS {prefix}{name} ({columns_and_key}){tail}")
    return made


def broker_statements(prefix: str) -> list[str]:
    """All tables of the embedded file. The last one made is `queues`: where it is, all are."""
    own = re.split(r";\n(?=CREATE)", _BROKER_TABLES.strip().format(p=prefix))
    return [*backend_statements(prefix), *own]


def round_expiry(now: float, expires: float) -> float:
    """When what is stored now expires: a little late, so that thousands of records share few moments."""
    step = min(3600.0, expires / 16) or 1.0
    return ((now + expires) // step + 1) * step


def extents_of(records: Sequence[Stored], expires_at: float) -> set[tuple[str, int, float]]:
    """The rows of `extents` that records need."""
    return {(record.run, 1 << max(record.count - 1, 0).bit_length(), expires_at) for record in records}


def sweep_statements(prefix: str) -> list[str]:
    """What drops the expired as of `:now`, in any SQL. Of outcomes only runs in which something has are looked at."""
    outcomes = f"run IN (SELECT run FROM {prefix}extents WHERE expires_at <= :now) AND expires_at <= :now"
    rest = [f"DELETE FROM {prefix}{name} WHERE expires_at <= :now" for name in BACKEND_TABLES if name != "outcomes"]
    return [f"DELETE FROM {prefix}outcomes WHERE {outcomes}", *rest]
