"""The embedded broker: what the conformance suite, which knows no files, doorbells and processes, does not see."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qnb.backends.sql import SqlBackend
from qnb.brokers.base import QueueSpec, Turn
from qnb.brokers.sqlite import bell
from qnb.brokers.sqlite.broker import SqliteBroker
from qnb.brokers.sqlite.file import translate
from qnb.errors import BrokerUnavailable, ConfigurationError, StorageFull
from qnb.message import Envelope, Note, Stored


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/qnb.db"


@pytest.fixture
def broker(url: str) -> Iterator[SqliteBroker]:
    made = SqliteBroker(url)
    yield made
    made.close()


@pytest.fixture
def other(url: str) -> Iterator[SqliteBroker]:
    """The same file as another process would have it."""
    made = SqliteBroker(url)
    yield made
    made.close()


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell, "fcntl", None)


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that only a bell, or what it knows to fall due, can wake it."""
    monkeypatch.setattr(bell, "LOOK_SECONDS", 60.0)


def test_import_is_light() -> None:
    heavy = "sqlalchemy", "asyncio", "pandas", "IPython"
    code = f"import sys, qnb.brokers.sqlite.broker, qnb.backends.sql; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_embedded_backend_never_imports_sqlalchemy(tmp_path: Path) -> None:
    code = (
        "import sys; from qnb.backends.sql import SqlBackend; from qnb.message import Stored;"
        f"backend = SqlBackend('sqlite:///{tmp_path}/x.db'); backend.store_many([Stored('r', 0, 1, b'x')]);"
        "print(len(backend.fetch_many('r', [(0, 1)])), 'sqlalchemy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1 False"


def at_once(receiver: Any) -> Any:
    """What comes, long before it would be found by a last look when its time is over."""
    begun = time.monotonic()
    got = receiver.receive_many(1, 30)
    assert got
    assert time.monotonic() - begun < 10
    return got


@pytest.mark.usefixtures("never_looks")
def test_a_bell_wakes_another_connection(broker: SqliteBroker, other: SqliteBroker) -> None:
    consumer = other.consume(["q"], prefetch=1)
    for _ in range(20):
        threading.Timer(0.02, broker.publish_many, [[Envelope("q", b"x")]]).start()
        consumer.ack_many(at_once(consumer))


@pytest.mark.usefixtures("no_sockets")
def test_without_sockets_it_polls(url: str) -> None:
    one, two = SqliteBroker(url), SqliteBroker(url)
    consumer, inbox = two.consume(["q"], prefetch=1), two.bus().join("me")
    threading.Timer(0.1, one.publish_many, [[Envelope("q", b"x")]]).start()
    at_once(consumer)
    threading.Timer(0.1, one.bus().post_many, [[Note("me", "event", b"n")]]).start()
    at_once(inbox)
    threading.Timer(0.1, inbox.wake).start()
    assert inbox.receive_many(1, 5) == []
    one.close()
    two.close()


def test_a_lost_bell_is_made_good(broker: SqliteBroker, other: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell.SocketBells, "ring", lambda *_: None)
    consumer, inbox = other.consume(["q"], prefetch=1), other.bus().join("me")
    threading.Timer(0.1, broker.publish_many, [[Envelope("q", b"x")]]).start()
    at_once(consumer)
    threading.Timer(0.1, broker.bus().post_many, [[Note("me", "event", b"n")]]).start()
    at_once(inbox)


@pytest.mark.usefixtures("never_looks")
def test_each_of_several_messages_wakes_another_consumer(broker: SqliteBroker, url: str) -> None:
    brokers = [SqliteBroker(url) for _ in range(3)]
    got: list[int] = []

    def take(number: int) -> None:
        consumer = brokers[number].consume(["q"], prefetch=1)
        at_once(consumer)
        got.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    broker.publish_many([Envelope("q", b"x")] * 3)
    for thread in threads:
        thread.join()
    assert sorted(got) == [0, 1, 2]
    for each in brokers:
        each.close()


@pytest.mark.usefixtures("never_looks")
def test_what_falls_due_soon_wakes_a_waiting_consumer(broker: SqliteBroker, other: SqliteBroker) -> None:
    consumer = other.consume(["q"], prefetch=1)
    threading.Timer(0.1, broker.publish_many, [[Envelope("q", b"x", delay=0.1)]]).start()
    started = time.monotonic()
    at_once(consumer)
    assert time.monotonic() - started > 0.15


def test_the_bells_of_the_killed_are_taken_down(broker: SqliteBroker, url: str) -> None:
    code = (
        f"from qnb.brokers.sqlite.broker import SqliteBroker; broker = SqliteBroker({url!r});"
        "consumer = broker.consume(['q'], prefetch=1); print(flush=True); consumer.receive_many(1, 60)"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1)
            process.kill()
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=1)
    assert consumer.receive_many(1, 1)
    bells = broker._bells
    assert isinstance(bells, bell.SocketBells)
    assert sum(name.isdigit() for name in os.listdir(bells._folder)) == 1


def test_the_last_to_leave_takes_the_bells_away_and_who_stays_gets_new_ones(url: str) -> None:
    stays = SqliteBroker(url)
    bells = stays._bells
    assert isinstance(bells, bell.SocketBells)
    SqliteBroker(url).close()
    assert not os.path.exists(bells._folder)
    late = SqliteBroker(url)
    consumer = late.consume(["q"], prefetch=1)
    threading.Timer(0.1, stays.publish_many, [[Envelope("q", b"x")]]).start()
    assert consumer.receive_many(1, 5)
    own = stays._bells.hang([b"1234567"])
    assert isinstance(own, bell.SocketBell)
    own.close()
    for each in (late, stays):
        each.close()
    assert not os.path.exists(bells._folder)


def test_closing_in_another_thread_ends_a_wait(url: str) -> None:
    broker = SqliteBroker(url)
    consumer, inbox = broker.consume(["q"], prefetch=1), broker.bus().join("me")
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda each=each: got.extend([each.receive_many(1, 30)])) for each in (consumer, inbox)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    broker.close()
    for thread in threads:
        thread.join(5)
    assert got == [[], []]


def test_large_bodies_live_in_a_row_of_their_own_and_go_with_their_message(broker: SqliteBroker) -> None:
    large = os.urandom(100_000)

    def bodies() -> int:
        return int(broker._database.read("SELECT count(*) FROM qnb_bodies")[0][0])

    consumer = broker.consume(["q"], prefetch=10)
    broker.publish_many([Envelope("q", b"small"), Envelope("q", large), Envelope("q", large, delay=60)])
    taken = consumer.receive_many(10, 0)
    assert [delivery.body for delivery in taken] == [b"small", large]
    consumer.release_many(taken)
    taken = consumer.receive_many(10, 0)
    consumer.extend_many(taken, 30)
    assert bodies() == 2
    consumer.ack_many(taken)
    assert bodies() == 1
    assert broker.purge("q") == 1
    assert bodies() == 0
    broker.publish_many([Envelope("q", large)])
    consumer.reject_many(consumer.receive_many(10, 0), "why")
    assert bodies() == 0
    assert [letter.body for letter in broker.dead_letters("q")] == [large]


def test_one_kernel_cannot_settle_what_another_now_has(broker: SqliteBroker, other: SqliteBroker) -> None:
    broker.declare(QueueSpec("q", lease=0.2))
    broker.publish_many([Envelope("q", b"x")])
    slow, quick = broker.consume(["q"], prefetch=1), other.consume(["q"], prefetch=1)
    stale = slow.receive_many(1, 0)
    fresh = quick.receive_many(1, 5)
    slow.ack_many(stale)
    slow.release_many(stale)
    slow.reject_many(stale, "stale")
    slow.extend_many(stale, 60)
    quick.extend_many(fresh, 60)
    assert (broker.depth("q"), list(broker.dead_letters("q"))) == (0, [])
    quick.release_many(fresh)
    assert broker.depth("q") == 1


def test_claims_stay_quick_with_many_waiting(broker: SqliteBroker) -> None:
    broker.publish_many([Envelope("q", b"x", priority=i % 10) for i in range(100_000)])
    consumer = broker.consume(["q"], prefetch=10_000)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        consumer.receive_many(10, 0)
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.005


def test_partner_settles_in_one_transaction(broker: SqliteBroker, url: str) -> None:
    backend = SqlBackend(url)
    settle = broker.partner(backend)
    assert settle is not None
    inbox = broker.bus().join("me")
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=1)
    record = Stored("r", 0, 9, b"first")
    turn = Turn([Envelope("next", b"y")], [record], [Note("me", "outcomes", b"n")], list(consumer.receive_many(1, 0)))
    before = broker._database.commits
    assert settle(consumer, turn) == []
    assert broker._database.commits == before + 1
    late = [Stored("r", 0, 1, b"second"), Stored("r", 9, 1, b"new")]
    assert settle(consumer, Turn(store=late)) == late[:1]
    assert list(backend.fetch_many("r", [(8, 1)])) == [record]
    assert [note.body for note in inbox.receive_many(9, 0)] == [b"n"]
    assert (broker.depth("q"), broker.depth("next")) == (0, 1)
    backend.close()


def test_no_partner_on_another_file_or_prefix(broker: SqliteBroker, url: str, tmp_path: Path) -> None:
    for elsewhere in (f"sqlite:///{tmp_path}/other.db", f"{url}?prefix=other_"):
        backend = SqlBackend(elsewhere)
        assert broker.partner(backend) is None
        backend.close()


def test_prefixes_share_a_file_and_nothing_else(url: str) -> None:
    one, two = SqliteBroker(f"{url}?prefix=one_"), SqliteBroker(f"{url}?prefix=two_")
    one.publish_many([Envelope("q", b"x")])
    assert (one.depth("q"), two.depth("q")) == (1, 0)
    one.close()
    two.close()
    with pytest.raises(ConfigurationError, match="prefix"):
        SqliteBroker(f"{url}?prefix=a-b")


def test_notes_are_read_once_and_in_order(broker: SqliteBroker, other: SqliteBroker) -> None:
    inbox = broker.bus().join("me")
    other.bus().post_many([Note("me", "event", b"%d" % i) for i in range(1200)] + [Note("nobody", "event", b"")])
    read: list[bytes] = []
    while notes := inbox.receive_many(100, 0.3):
        read += [note.body for note in notes]
    assert read == [b"%d" % i for i in range(1200)]
    assert broker._database.read("SELECT count(*) FROM qnb_notes")[0][0] == 1  # the newest keeps the number
    other.bus().post_many([Note("me", "event", b"more")])
    assert [note.body for note in inbox.receive_many(100, 1)] == [b"more"]


def test_a_mailbox_swept_while_its_process_slept_is_opened_anew(broker: SqliteBroker, other: SqliteBroker) -> None:
    inbox = broker.bus().join("me")
    other.bus().post_many([Note("me", "event", b"1")])
    assert inbox.receive_many(1, 0)
    other._database.read("UPDATE qnb_peers SET read_at = 0")
    other.bus().join("someone")
    inbox.beat()
    assert inbox.receive_many(1, 0) == []
    other.bus().post_many([Note("me", "event", b"2")])
    assert [note.body for note in inbox.receive_many(1, 1)] == [b"2"]


def test_waits_for_a_writer_that_takes_its_time(broker: SqliteBroker, url: str, tmp_path: Path) -> None:
    writer = sqlite3.connect(tmp_path / "qnb.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, writer.execute, ["COMMIT"]).start()
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    writer.close()


def test_a_writer_that_never_ends_is_named(
    broker: SqliteBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnb.brokers.sqlite.file.BUSY_SECONDS", 0.2)
    writer = sqlite3.connect(tmp_path / "qnb.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(BrokerUnavailable, match=r"qnb\.db has been locked"):
        broker.publish_many([Envelope("q", b"x")])
    writer.execute("ROLLBACK")
    writer.close()
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1


def test_a_full_disk_says_so_and_loses_nothing(broker: SqliteBroker) -> None:
    broker.publish_many([Envelope("q", b"x")])
    pages = broker._database.read("PRAGMA page_count")[0][0]
    broker._database.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match=r"qnb\.db is full: free some space"):
        broker.publish_many([Envelope("q", b"x" * 100_000)])
    broker._database.read("PRAGMA max_page_count = 1000000")
    broker.publish_many([Envelope("q", b"y")])
    assert broker.depth("q") == 2


def test_a_commit_that_finds_the_disk_full_says_so(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        """The connection of a disk that fills up while the log is written."""

        in_transaction = False

        def execute(self, statement: str, *_: object) -> None:
            if statement == "COMMIT":
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

    monkeypatch.setattr(broker._database, "connection", FullDisk)
    with pytest.raises(StorageFull, match="free some space"), broker._database.lock, broker._database.transaction:
        pass
    monkeypatch.undo()
    broker.publish_many([Envelope("q", b"x")])


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "qnb.db").write_text("my notes\n" * 1000)
    with pytest.raises(ConfigurationError, match="is not an SQLite file"):
        SqliteBroker(f"sqlite:///{tmp_path}/qnb.db")
    assert (tmp_path / "qnb.db").read_text().startswith("my notes")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageFull, match=r"sqlite:////path"):
        SqliteBroker(f"sqlite:///{tmp_path}/qnb.db")


@pytest.mark.parametrize(
    "code, kind, words",
    [
        (sqlite3.SQLITE_FULL, StorageFull, "free some space"),
        (sqlite3.SQLITE_READONLY, StorageFull, "writable"),
        (sqlite3.SQLITE_IOERR_WRITE, StorageFull, "check its space"),
        (sqlite3.SQLITE_CORRUPT, BrokerUnavailable, "move it away"),
    ],
)
def test_errors_name_file_and_remedy(code: int, kind: type[Exception], words: str) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    told = translate(error, Path("/some/qnb.db"))
    assert isinstance(told, kind)
    assert "/some/qnb.db" in str(told)
    assert words in str(told)


def test_closing_releases_what_consumers_hold(url: str, broker: SqliteBroker) -> None:
    brief = SqliteBroker(url)
    broker.publish_many([Envelope("q", b"x")])
    consumer = brief.consume(["q"], prefetch=1)
    assert consumer.receive_many(1, 0)
    brief.close()
    brief.close()
    consumer.close()
    assert consumer.receive_many(1, 0) == []
    again = broker.consume(["q"], prefetch=1).receive_many(1, 0)
    assert [delivery.deliveries for delivery in again] == [1]
    with pytest.raises(BrokerUnavailable, match="closed"):
        brief.publish_many([Envelope("q", b"x")])
