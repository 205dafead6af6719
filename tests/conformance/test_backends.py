"""Backends: the first outcome stored for a call wins, and everything is found again."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial

import pytest

from qnb.backends.base import Backend
from qnb.backends.schedules import Fired, Plan, Schedules, Tick
from qnb.codec.signing import Signer
from qnb.message import RunRecord, Stored
from tests.conformance.help import Later, Place


def record(first: int, count: int = 1, data: bytes = b"", run: str = "run") -> Stored:
    return Stored(run, first, count, data or b"%d+%d" % (first, count))


def run_record(name: str, created_at: float | None = None, /, **more: object) -> RunRecord:
    at = time.time() if created_at is None else created_at
    fields = {"run": name, "kind": "map", "name": "f", "count": 10, "session": "s", "data": b"\0detail", **more}
    return RunRecord(created_at=at, **fields)  # type: ignore[arg-type]


def firsts(records: Sequence[Stored]) -> list[int]:
    return [stored.first for stored in records]


@pytest.fixture
def backend(vault: Place) -> Backend:
    return vault.backend()


def test_what_is_stored_is_found(backend: Backend, vault: Place) -> None:
    stored = [record(0, 3), record(3), record(4, 100, bytes(range(256)) * 50)]
    assert list(backend.store_many(stored)) == []
    assert list(vault.backend().fetch_many("run")) == stored
    assert list(backend.fetch_many("another")) == []
    assert list(backend.fetch_many("another", [(0, 10)])) == []


def test_storing_nothing_is_no_error(backend: Backend) -> None:
    assert list(backend.store_many([])) == []


def test_records_come_by_first_however_they_were_stored(backend: Backend) -> None:
    order = list(range(0, 400, 2))
    random.Random(5).shuffle(order)
    for at in range(0, len(order), 37):
        backend.store_many([record(first, 2) for first in order[at : at + 37]])
    assert firsts(backend.fetch_many("run")) == list(range(0, 400, 2))
    assert firsts(backend.fetch_many("run", [(300, 4), (10, 2), (11, 3)])) == [10, 12, 300, 302]


def test_the_first_one_wins(backend: Backend) -> None:
    assert list(backend.store_many([record(0, 3, b"first"), record(5, 1, b"five")])) == []
    late = [record(0, 3, b"second"), record(3, 1, b"three"), record(5, 2, b"longer"), record(7, 1, b"seven")]
    assert list(backend.store_many(late)) == [late[0], late[2]]
    kept = [(stored.first, stored.count, stored.data) for stored in backend.fetch_many("run")]
    assert kept == [(0, 3, b"first"), (3, 1, b"three"), (5, 1, b"five"), (7, 1, b"seven")]


def test_within_one_batch_too(backend: Backend) -> None:
    batch = [record(0, 1, b"a"), record(1, 1, b"b"), record(0, 1, b"c")]
    assert list(backend.store_many(batch)) == [batch[2]]
    assert [stored.data for stored in backend.fetch_many("run")] == [b"a", b"b"]


def test_runs_do_not_disturb_each_other(backend: Backend) -> None:
    batch = [record(0, 1, run.encode(), run) for run in ("a", "b", "a:0", "b*")]
    assert list(backend.store_many(batch)) == []
    for stored in batch:
        assert list(backend.fetch_many(stored.run)) == [stored]


def test_one_winner_among_many_threads(backend: Backend, vault: Place) -> None:
    other = vault.backend()
    wins = [Later(partial(_race, backend if who % 2 else other, who)) for who in range(6)]
    won = [first for later in wins for first in later.result()]
    assert sorted(won) == list(range(100))


def _race(backend: Backend, who: int) -> list[int]:
    won = []
    for first in range(0, 100, 5):
        batch = [record(number, 1, b"%d" % who) for number in range(first, first + 5)]
        refused = backend.store_many(batch)
        won += [stored.first for stored in batch if stored not in refused]
    return won


@pytest.mark.parametrize(
    "span, found",
    [
        ((0, 1), [0]),
        ((9, 1), [0]),
        ((10, 1), [10]),
        ((11, 2), [11, 12]),
        ((0, 1000), [0, 10, 11, 12, 40, 100]),
        ((13, 1), [12]),
        ((21, 1), [12]),
        ((22, 18), []),
        ((22, 19), [40]),
        ((50, 50), []),
        ((99, 2), [100]),
        ((8, 3), [0, 10]),
        ((611, 1), [100]),
        ((612, 1), []),
        ((100_000, 5), []),
    ],
)
def test_spans_find_what_touches_them(backend: Backend, span: tuple[int, int], found: list[int]) -> None:
    backend.store_many([record(0, 10), record(10), record(11), record(12, 10), record(40), record(100, 512)])
    assert firsts(backend.fetch_many("run", [span])) == found


def test_many_spans_at_once(backend: Backend) -> None:
    """Against the definition, with overlaps and records of all lengths."""
    chance = random.Random(11)
    stored: dict[int, Stored] = {}
    for _ in range(300):
        first = chance.randrange(3000)
        stored.setdefault(first, record(first, chance.choice([1, 1, 1, 2, 7, 64, 256])))
    assert list(backend.store_many(list(stored.values()))) == []
    for size in (1, 5, 60):
        spans = [(chance.randrange(3200), chance.choice([1, 1, 3, 50])) for _ in range(size)]
        expected = [
            one
            for _, one in sorted(stored.items())
            if any(one.first < first + count and first < one.first + one.count for first, count in spans)
        ]
        assert list(backend.fetch_many("run", spans)) == expected
    assert list(backend.fetch_many("run", [])) == []


def test_thousands_of_records(backend: Backend) -> None:
    batch = [record(number) for number in range(3000)]
    assert list(backend.store_many(batch)) == []
    assert list(backend.fetch_many("run")) == batch
    assert list(backend.fetch_many("run", [(1500, 1000)])) == batch[1500:2500]
    assert len(backend.store_many(batch[::2])) in (0, 1500)  # the same bytes again may count as its own


def test_large_indices(backend: Backend) -> None:
    batch = [record(first) for first in (0, 2**16, 2**20 - 1, 5_000_000)]
    assert list(backend.store_many(batch)) == []
    assert list(backend.fetch_many("run")) == batch
    assert list(backend.fetch_many("run", [(5_000_000, 1)])) == batch[3:]


def test_a_megabyte(backend: Backend) -> None:
    big = record(0, 2, bytes(range(256)) * 4096 * 3)
    assert list(backend.store_many([big])) == []
    assert list(backend.fetch_many("run", [(1, 1)])) == [big]


def test_runs(backend: Backend, vault: Place) -> None:
    now = time.time()
    for age in (30, 10, 20):
        backend.save_run(run_record(f"run{age}", now - age))
    backend.save_run(run_record("run10", now - 10, count=None, name="änother", data=b""))
    assert backend.load_run("run10") == run_record("run10", now - 10, count=None, name="änother", data=b"")
    assert backend.load_run("nobody knows it") is None
    other = vault.backend()
    assert [one.run for one in other.list_runs()] == ["run10", "run20", "run30"]
    assert [one.run for one in other.list_runs(limit=2)] == ["run10", "run20"]


def test_forgetting_a_run_leaves_nothing_of_it(backend: Backend) -> None:
    for run in ("gone", "kept"):
        backend.save_run(run_record(run))
        backend.store_many([record(0, 1, b"x", run)])
        backend.revoke_many([(run, 1, 2)])
    backend.forget_run("gone")
    backend.forget_run("never was")
    assert backend.load_run("gone") is None
    assert list(backend.fetch_many("gone")) == []
    assert [one.run for one in backend.list_runs()] == ["kept"]
    assert list(backend.revoked()) == [("kept", 1, 2)]
    assert len(backend.fetch_many("kept")) == 1
    assert list(backend.store_many([record(0, 1, b"new", "gone")])) == []


def test_blobs(backend: Backend, vault: Place) -> None:
    big = bytes(range(256)) * 8192
    backend.put_blob("sha:1", big)
    backend.put_blob("sha:2", b"")
    backend.put_blob("sha:1", big)
    other = vault.backend()
    assert (other.get_blob("sha:1"), other.get_blob("sha:2"), other.get_blob("sha:3")) == (big, b"", None)
    if (forget := getattr(backend, "forget_blobs", None)) is not None:  # which a third party's need not have
        forget([])
        forget(["sha:1", "sha:3"])
        assert (other.get_blob("sha:1"), other.get_blob("sha:2")) == (None, b"")


def test_revocations(backend: Backend, vault: Place) -> None:
    assert list(backend.revoked()) == []
    backend.revoke_many([])
    backend.revoke_many([("a", 0, 1), ("b:c", 5, 100)])
    backend.revoke_many([("a", 0, 1), ("a", 7, 1)])
    assert sorted(vault.backend().revoked()) == [("a", 0, 1), ("a", 7, 1), ("b:c", 5, 100)]


def test_everything_expires(vault: Place) -> None:
    backend = vault.backend(expires=1)
    backend.save_run(run_record("run"))
    backend.store_many([record(0, 3)])
    backend.put_blob("blob", b"x")
    backend.revoke_many([("run", 0, 1)])
    assert (len(backend.fetch_many("run")), backend.get_blob("blob"), len(backend.revoked())) == (1, b"x", 1)
    deadline = time.monotonic() + 10
    while _kept(backend) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _kept(backend) == []
    assert list(backend.store_many([record(0, 1, b"new")])) == []


def _kept(backend: Backend) -> list[object]:
    found = [backend.load_run("run"), backend.get_blob("blob"), *backend.fetch_many("run", [(0, 5)])]
    return [one for one in (*found, *backend.fetch_many("run"), *backend.list_runs(), *backend.revoked()) if one]


def test_prefixes_keep_places_apart(vault: Place) -> None:
    one, two = vault.backend(prefix="one"), vault.backend(prefix="two")
    one.store_many([record(0)])
    one.save_run(run_record("run"))
    one.put_blob("blob", b"x")
    one.revoke_many([("run", 0, 1)])
    assert (list(two.fetch_many("run")), two.load_run("run"), two.get_blob("blob"), list(two.revoked())) == (
        [],
        None,
        None,
        [],
    )
    assert list(two.store_many([record(0, 1, b"other")])) == []


# Schedules are made of what a backend has -----------------------------------------------------------------------


def test_schedules(backend: Backend, vault: Place) -> None:
    """Found by others, claimed by whoever is first, replaced, cancelled."""
    signer = Signer(b"a key for the tests of schedules")
    if not backend.blobs:
        pytest.skip("nothing is kept here for others to find")
    ours, theirs = Schedules(backend, signer), Schedules(vault.backend(), signer)
    plan = Plan(b"h" * 16, False, "", {}, "1s", "UTC", "f", "qnb", "f 1s")
    for number in range(3):
        ours.save(run_record(f"s-{number}", kind="schedule", count=0), plan)
        (ours if number % 2 else theirs).register(f"s-{number}", plan)
    assert sorted(theirs.runs()) == ["s-0", "s-1", "s-2"]
    assert theirs.fired("s-0") == []
    tick = Tick(10.0, 11.0, "w1", 2)
    assert [ours.claim("s-0", 0, 0, tick), theirs.claim("s-0", 0, 0, Tick(10.0, 11.5, "w2"))] == [True, False]
    assert theirs.fired("s-0") == [Fired(0, tick, 1, sent=False)]
    assert theirs.claim("s-0", 0, 1, Tick(10.0, 30.0, "w2")), "its lease has ended"
    theirs.published("s-0", 0, Tick(10.0, 30.0, "w2"))
    assert ours.claim("s-0", 1, 0, Tick(20.0, 31.0, "w1"))
    found = ours.fired("s-0")
    assert [(fired.number, fired.tick.worker, fired.claims, fired.sent) for fired in found] == [
        (0, "w2", 2, True), (1, "w1", 1, False),
    ]  # fmt: skip
    assert ours.fired("s-0", 1) == found[1:]
    theirs.cancel("s-1")
    assert [record.run for record, _ in ours.all()] == ["s-0", "s-2"]
    record, kept = theirs.load("s-2") or pytest.fail("it is gone")
    theirs.renew(record, kept, 99.0)
    assert (ours.load("s-2") or pytest.fail("it is gone"))[1].renewed_at == 99.0
    assert sorted(ours.runs()) == ["s-0", "s-1", "s-2"], "registered twice, it is one"
