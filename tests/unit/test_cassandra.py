"""The backend on Cassandra: what the conformance suite does not ask, and what goes wrong there."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cassandra import ConsistencyLevel, WriteTimeout, WriteType
from cassandra.query import BatchStatement

import qnb
from qnb.backends import cassandra as adapter
from qnb.backends.cassandra import CassandraBackend
from qnb.errors import AccessDenied, BackendUnavailable, ConfigurationError, QnbError
from qnb.message import RunRecord, Stored
from qnb.registry import open_backend
from tests.servers.base import free_port
from tests.servers.cassandra import CassandraServer, GuardedCassandraServer
from tests.services import Services, with_options

Open = Callable[..., CassandraBackend]


@pytest.fixture(scope="module")
def server(services: Services) -> CassandraServer:
    """One for all of this: it knows users and rights, and may be killed."""
    return services.own(GuardedCassandraServer)


@pytest.fixture
def url(services: Services, server: CassandraServer) -> str:
    return with_options(server.url, prefix=services.word())


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a backend, and closes it at the end."""
    with ExitStack() as stack:

        def one(url: str, **options: object) -> CassandraBackend:
            backend: CassandraBackend = open_backend(with_options(url, **options))
            stack.callback(backend.close)
            return backend

        yield one


def record(first: int, data: bytes = b"x", run: str = "r") -> Stored:
    return Stored(run, first, 1, data)


def ask(backend: CassandraBackend, query: str, *values: object) -> list[tuple[Any, ...]]:
    return backend._link.rows(query, (backend.place, *values))


# ---------------------------------------------------------------- URLs, keyspaces and tables


def test_levels_of_consistency(url: str, opened: Open) -> None:
    default = opened(url)._link
    assert (default.levels.read, default.levels.write) == (ConsistencyLevel.LOCAL_QUORUM, ConsistencyLevel.LOCAL_QUORUM)
    assert default.levels.serial == ConsistencyLevel.LOCAL_SERIAL
    link = opened(url, consistency="ONE", write_consistency="quorum")._link
    assert (link.levels.read, link.levels.write, link.levels.serial) == (
        ConsistencyLevel.ONE,
        ConsistencyLevel.QUORUM,
        ConsistencyLevel.SERIAL,
    )
    assert (
        link.prepare("SELECT record FROM {runs} WHERE place = ? AND run = ?").consistency_level == ConsistencyLevel.ONE
    )
    with pytest.raises(ConfigurationError, match="LOCAL_QUORUM"):
        CassandraBackend(with_options(url, consistency="MOST"))


def test_the_protocol_is_found_and_hosts_are_tried_in_turn(url: str, opened: Open) -> None:
    plain = url.replace("protocol_version=3&", "").replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1")
    assert "protocol" not in plain
    assert opened(plain).fetch_many("r") == []


def test_a_keyspace_is_made_as_asked(url: str, services: Services, opened: Open) -> None:
    keyspace = services.word()
    own = url.replace("/qnb?", f"/{keyspace}?")
    with pytest.raises(ConfigurationError, match="keyspace"):
        opened(own, create_tables="false").fetch_many("r")
    backend = opened(own, replication="datacenter1:1", table_prefix="mine_")
    backend.store_many([record(0)])
    found = backend._link._cluster.metadata.keyspaces[keyspace]
    assert found.replication_strategy.name == "NetworkTopologyStrategy"
    assert {name.partition("_")[0] for name in found.tables} == {"mine"}
    assert opened(own, create_tables="false", table_prefix="mine_").fetch_many("r") == [record(0)]
    with pytest.raises(ConfigurationError, match="replication"):
        CassandraBackend(with_options(url.replace("/qnb?", "/other?"), replication="a lot"))
    with pytest.raises(ConfigurationError, match="letters"):
        CassandraBackend(url.replace("/qnb?", "/no-name?"))


def test_a_place_costs_no_tables(url: str, services: Services, opened: Open) -> None:
    tables = set(opened(url)._link._cluster.metadata.keyspaces["qnb"].tables)
    assert set(opened(url, prefix=services.word())._link._cluster.metadata.keyspaces["qnb"].tables) == tables


@pytest.mark.parametrize("option", ["expires", "entry_ttl"])
def test_every_row_has_its_time(url: str, opened: Open, option: str) -> None:
    backend = opened(url, **{option: 1000})
    big = bytes(100_000)
    backend.store_many([record(0), record(1, big)])
    backend.put_blob("sha", big)
    backend.save_run(RunRecord("r", "map", "f", 1, 5.0, "s"))
    backend.revoke_many([("r", 0, 1)])
    for table, column in [
        ("outcomes", "count"),
        ("widths", None),
        ("chunks", "data"),
        ("runs", "record"),
        ("history", "record"),
        ("revocations", "kept"),
    ]:
        if column is None:  # a row of keys alone has a time too, but no column to ask for it
            continue
        name = backend._link.names[table]
        rows = backend._link._session.execute(f"SELECT place, TTL({column}) FROM {name}")
        times = [ttl for place, ttl in rows if place == backend.place]
        assert times, table
        assert all(900 < ttl <= 1001 for ttl in times), table


def test_nothing_is_written_to_the_terminal(url: str) -> None:
    """The driver logs a lost connection as a warning, which Python shows where nobody has set up logging."""
    code = f"""
from qnb.backends.cassandra import CassandraBackend
from qnb.errors import BackendUnavailable
backend = CassandraBackend({url!r})
backend.fetch_many("r")
backend.close()
try:
    CassandraBackend("cassandra://127.0.0.1:{free_port()}/x")
except BackendUnavailable:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n", "")


# ---------------------------------------------------------------- outcomes


def test_large_records_and_blobs_are_cut(url: str, opened: Open) -> None:
    backend = opened(url)
    big = random.Random(1).randbytes(3_000_000)
    batch = [record(0, big), record(1, bytes(9000)), record(2, b"")]
    assert backend.store_many(batch) == []
    assert backend.fetch_many("r") == batch
    backend.put_blob("sha", big)
    assert backend.get_blob("sha") == big
    cells = [row[0] for row in ask(backend, "SELECT data FROM {chunks} WHERE place = ? AND name = ?", "blob:sha")]
    assert len(cells) == 6
    assert max(map(len, cells)) <= 2**20


def test_who_loses_leaves_no_chunks(url: str, opened: Open) -> None:
    backend = opened(url)
    assert backend.store_many([record(0, bytes(20_000))]) == []
    assert len(backend.store_many([record(0, bytes(30_000)), record(1, b"new")])) == 1
    name = backend._link.names["chunks"]
    rows = backend._link._session.execute(f"SELECT DISTINCT place, name FROM {name}")
    assert len([row for row in rows if row[0] == backend.place]) == 1
    assert backend.fetch_many("r") == [record(0, bytes(20_000)), record(1, b"new")]


def test_a_batch_takes_one_agreement_a_partition(url: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(url)
    sent: list[object] = []
    monkeypatch.setattr(adapter.Link, "_begin", _counting(adapter.Link._begin, sent))
    assert backend.store_many([record(number) for number in range(500)]) == []
    assert len([each for each in sent if isinstance(each, BatchStatement)]) == adapter.BUCKETS
    assert len(sent) == adapter.BUCKETS + 1  # the width


def _counting(begin: Callable[..., Any], sent: list[object]) -> Callable[..., Any]:
    def counted(link: object, statements: list[object]) -> Any:
        sent.extend(statements)
        return begin(link, statements)

    return counted


def test_one_winner_even_of_the_same_bytes(url: str, opened: Open) -> None:
    backends = [opened(url), opened(url)]
    gate = threading.Barrier(4)

    def race(who: int) -> int:
        gate.wait()
        won = 0
        for first in range(0, 200, 20):
            batch = [record(number) for number in range(first, first + 20)]
            random.Random(who).shuffle(batch)
            won += 20 - len(backends[who % 2].store_many(batch))
        return won

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(race, range(4))) == 200


def test_an_agreement_whose_answer_was_lost_is_ours(url: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers give up waiting for each other, and it stands all the same: asked again, it is not another's."""
    backend = opened(url)
    finish, lost = adapter.Link._finish, []

    def once_lost(link: Any, statement: Any, begun: list[Any], read: Any) -> Any:
        found = finish(link, statement, begun, read)
        if isinstance(statement, BatchStatement) and not lost:
            lost.append(statement)
            raise WriteTimeout("timed out", write_type=WriteType.CAS)
        return found

    monkeypatch.setattr(adapter.Link, "_finish", once_lost)
    assert backend.store_many([record(0), record(1)]) == []
    assert lost
    assert backend.fetch_many("r") == [record(0), record(1)]


def test_forgotten_is_forgotten_and_what_comes_next_stays(url: str, opened: Open) -> None:
    """Also where the clock here is ahead of the servers': a deletion has a time, and hides what is older."""
    backend, other = opened(url), opened(url)
    backend._link._cluster.timestamp_generator = lambda: int((time.time() + 60) * 1e6)
    for turn in range(3):
        batch = [record(number, b"%d" % turn) for number in range(0, 300, 7)] + [record(1, bytes(10_000))]
        assert other.store_many(batch) == []
        assert len(backend.fetch_many("r")) == len(batch)
        assert len(other.fetch_many("r", [(0, 300)])) == len(batch)
        backend.forget_run("r")
        assert backend.fetch_many("r") == []


# ---------------------------------------------------------------- what goes wrong


def refused(url: str) -> QnbError:
    """Why it cannot be opened; said within 5 seconds, and nowhere with the password."""
    begun = time.monotonic()
    with pytest.raises(QnbError) as caught:
        CassandraBackend(url)
    assert time.monotonic() - begun < 5
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    return caught.value


def test_nobody_listens() -> None:
    assert isinstance(
        refused(f"cassandra://me:hush@127.0.0.1:{free_port()},127.0.0.1:{free_port()}/x"), BackendUnavailable
    )


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(refused(f"cassandra://me:hush@127.0.0.1:{port}/x"), BackendUnavailable)


def test_a_bundle_or_certificate_that_is_not_there(url: str) -> None:
    assert isinstance(refused("cassandra:///x?secure_bundle=/nowhere.zip"), ConfigurationError)
    assert isinstance(refused(with_options(url, ssl_ca="/nowhere.pem")), ConfigurationError)


def test_users_and_rights(server: CassandraServer, opened: Open) -> None:
    url = server.url
    backend = opened(url, prefix="p")
    backend.store_many([record(0)])
    for wrong in ("cassandra:hush", "nobody:hush"):
        assert isinstance(refused(url.replace("cassandra:cassandra", wrong)), AccessDenied)
    assert isinstance(refused(url.replace("cassandra:cassandra@", "")), AccessDenied)
    backend._link._session.execute("CREATE USER reader WITH PASSWORD 'hush' NOSUPERUSER")
    backend._link._session.execute("GRANT SELECT ON KEYSPACE qnb TO reader")
    reader = url.replace("cassandra:cassandra", "reader:hush")
    assert isinstance(refused(reader.replace("/qnb?", "/another?")), AccessDenied)
    few = opened(reader, prefix="p")
    assert few.fetch_many("r") == [record(0)]
    with pytest.raises(AccessDenied, match="MODIFY"):
        few.store_many([record(1)])
    assert "hush" not in f"{few.url}{few!r}"


def test_after_the_end(url: str, opened: Open) -> None:
    backend = opened(url)
    backend.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        backend.fetch_many("r")


def test_a_server_that_is_killed_and_comes_back(
    url: str, server: CassandraServer, opened: Open, tmp_path: Path
) -> None:
    """What was stored is there again. Outcomes of a run wait in the workers; each is stored once, and the session gets
    all."""
    backend = opened(url)
    kept = [record(number) for number in range(100)]
    backend.store_many(kept)
    backend.put_blob("sha", b"blob")
    with qnb.Session(f"sqlite:///{tmp_path}/q.db", backend=url, workers=2) as session:
        batch = session.map(_short, range(500))
        next(batch.as_completed())
        server.kill()
        with pytest.raises(BackendUnavailable, match="check host"):
            backend.fetch_many("r")
        with pytest.raises(BackendUnavailable):
            backend.store_many([record(100)])
        server.start()
        assert batch.results(timeout=90) == list(range(500))
        assert sum(one.count for one in session.backend.fetch_many(batch.run)) == 500
    assert back(backend) == kept
    assert backend.store_many([record(0, b"late"), record(100)]) == [record(0, b"late")]
    assert backend.get_blob("sha") == b"blob"


def back(backend: CassandraBackend) -> list[Stored]:
    """The records of the run, once the driver has found the server again: it tries once a second."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return list(backend.fetch_many("r"))
        except BackendUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _short(number: int) -> int:
    time.sleep(0.004)
    return number
