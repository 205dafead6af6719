"""The SQL backend on PostgreSQL and MariaDB: what the conformance suite does not ask, and what goes wrong there."""

from __future__ import annotations

import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

import qnb
from qnb.backends.sql import SqlBackend
from qnb.errors import AccessDenied, BackendUnavailable, ConfigurationError, MissingLibrary, PayloadTooLarge, QnbError
from qnb.message import RunRecord, Stored
from qnb.registry import open_backend
from tests.servers.base import Server, free_port
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PASSWORD, PostgresqlServer
from tests.services import Services, with_options

KINDS: list[type[Server]] = [PostgresqlServer, MariadbServer]
Open = Callable[..., SqlBackend]


@pytest.fixture(params=KINDS, ids=["postgresql", "mysql"])
def kind(request: pytest.FixtureRequest) -> type[Server]:
    found: type[Server] = request.param
    return found


@pytest.fixture
def server(kind: type[Server], services: Services) -> Server:
    return services.common(kind)


@pytest.fixture
def url(server: Server, services: Services) -> str:
    return with_options(server.url, prefix=services.word())


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a backend, and closes it at the end."""
    with ExitStack() as stack:

        def one(url: str, **options: object) -> SqlBackend:
            backend: SqlBackend = open_backend(with_options(url, **options))
            stack.callback(backend.close)
            return backend

        yield one


def plain(url: str) -> sa.Engine:
    """The server without qnb."""
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    bare = sa.make_url(url.partition("?")[0])
    return sa.create_engine(bare.set(drivername=drivers[bare.drivername]), poolclass=sa.NullPool)


def record(first: int, data: bytes = b"x", run: str = "r") -> Stored:
    return Stored(run, first, 1, data)


def tables(url: str, schema: str | None = None) -> set[str]:
    return set(sa.inspect(plain(url)).get_table_names(schema))


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize("front", ["db+{0}", "db+{0}+{1}", "{0}+{1}"])
def test_celerys_and_sqlalchemys_spellings(url: str, front: str, opened: Open) -> None:
    scheme, _, rest = url.partition(":")
    driver = {"postgresql": "psycopg", "mysql": "pymysql"}[scheme]
    opened(url).store_many([record(0)])
    assert opened(f"{front.format(scheme, driver)}:{rest}").fetch_many("r") == [record(0)]


def test_mariadb_is_mysql(services: Services, opened: Open) -> None:
    url = services.common(MariadbServer).url.replace("mysql:", "mariadb:")
    assert opened(url, prefix=services.word()).fetch_many("r") == []


def test_several_hosts(services: Services, opened: Open) -> None:
    """One of them is not there; MySQL's drivers know one host only."""
    place = services.common(PostgresqlServer).url.replace("@", f"@127.0.0.1:{free_port()},")
    assert opened(place, prefix=services.word()).fetch_many("r") == []
    with pytest.raises(ConfigurationError, match="several hosts"):
        SqlBackend("mysql://one,two/qnb")


def test_engine_options_reach_the_engine_and_the_rest_the_driver(url: str, opened: Open) -> None:
    more = {"application_name": "mine"} if url.startswith("postgresql") else {"init_command": "SET @mine = 5"}
    engine = opened(url, pool_size=2, max_overflow=0, pool_timeout=1, pool_pre_ping="false", **more)._engine
    assert engine._engine.pool.size() == 2  # type: ignore[attr-defined]
    said = "SELECT current_setting('application_name')" if url.startswith("postgresql") else "SELECT @mine"
    assert engine.rows(said, {})[0][0] in ("mine", 5)


@pytest.mark.parametrize("option", [{"nonsense": 1}, {"pool_size": "many"}])
def test_a_wrong_option_is_told(url: str, option: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"nonsense|many"):
        SqlBackend(with_options(url, **option))


def test_a_driver_that_is_not_there_or_asynchronous() -> None:
    with pytest.raises(MissingLibrary, match="leave the driver out"):
        SqlBackend("postgresql+psycopg2://127.0.0.1/x")
    with pytest.raises((ConfigurationError, MissingLibrary)):
        SqlBackend("postgresql+asyncpg://127.0.0.1/x")


# ---------------------------------------------------------------- tables


def test_a_schema_and_names_of_ones_own(url: str, services: Services, opened: Open) -> None:
    schema = services.word() if url.startswith("postgresql") else "qnb"  # no right to make another database
    own = f"Mine{services.word()}"  # in capitals too, which both have to quote
    backend = opened(url, schema=schema, outcomes_table=own)
    backend.store_many([record(0)])
    backend.save_run(RunRecord("r", "map", "f", 1, time.time(), "s"))
    assert backend.fetch_many("r", [(0, 1)]) == [record(0)]
    assert own.lower() in {name.lower() for name in tables(url, schema)}
    assert f"{backend.prefix}runs" in tables(url, schema)
    with pytest.raises(ConfigurationError, match="letters"):
        SqlBackend(with_options(url, schema="a; drop"))


def test_many_make_the_tables_at_once(url: str, opened: Open) -> None:
    gate = threading.Barrier(8)

    def start(number: int) -> int:
        gate.wait()
        return len(opened(url).store_many([record(number)]))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(8))) == 0
    assert len(opened(url).fetch_many("r")) == 8


def test_somebody_else_makes_the_tables(url: str, opened: Open) -> None:
    with pytest.raises(ConfigurationError, match="lacks a table"):
        opened(url, create_tables="false").store_many([record(0)])
    assert opened(url).store_many([record(0)]) == []
    assert opened(url, create_tables="false").fetch_many("r") == [record(0)]


def test_tables_that_were_dropped_are_made_anew(url: str, opened: Open) -> None:
    backend = opened(url)
    backend.store_many([record(0)])
    with plain(url).begin() as connection:
        for name in backend._engine.names.values():
            connection.execute(sa.text(f"DROP TABLE {name}"))
    assert backend.store_many([record(1)]) == []
    assert backend.fetch_many("r") == [record(1)]


def test_large_and_odd_things_come_back_whole(url: str, opened: Open) -> None:
    """MySQL's BLOB ends at 64 KB, its TEXT too; its usual collation holds "a" for "A"."""
    backend = opened(url)
    big = random.Random(1).randbytes(3_000_000)
    backend.store_many([record(0, big), record(0, b"upper", "R"), record(0, b"b", "rä")])
    assert [backend.fetch_many(run)[0].data for run in ("r", "R", "rä")] == [big, b"upper", b"b"]
    backend.put_blob("sha", big)
    assert backend.get_blob("sha") == big
    run = RunRecord("r", "map", "ƒ" * 70_000 if url.startswith("postgresql") else "ƒ" * 20_000, None, 1.5, "s", big)
    backend.save_run(run)
    assert backend.load_run("r") == run


# ---------------------------------------------------------------- outcomes


def test_one_winner_even_of_the_same_bytes(url: str, opened: Open) -> None:
    """Who else has stored the same is no less refused: exactly one is told that it was first."""
    backends = [opened(url), opened(url)]
    gate = threading.Barrier(6)

    def race(who: int) -> int:
        gate.wait()
        won = 0
        for first in range(0, 200, 10):
            batch = [record(number) for number in range(first, first + 10)]
            random.Random(who).shuffle(batch)
            won += 10 - len(backends[who % 2].store_many(batch))
        return won

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(race, range(6))) == 200


def test_what_has_expired_makes_way(url: str, opened: Open) -> None:
    old, new = opened(url, expires=0.2), opened(url)
    old.store_many([record(0, b"old"), record(2, b"old")])
    time.sleep(0.5)
    assert new.store_many([record(0, b"new"), record(1, b"new")]) == []
    assert [each.data for each in new.fetch_many("r")] == [b"new", b"new"]


def test_the_sweep_takes_what_has_expired_and_no_more(url: str, opened: Open) -> None:
    short, long = opened(url, expires=0.1), opened(url)
    for backend, run in ((short, "short"), (long, "long")):
        backend.store_many([record(0, run=run), record(1, run=run)])
        backend.save_run(RunRecord(run, "map", "f", 1, time.time(), "s"))
        backend.put_blob(run, b"x")
        backend.revoke_many([(run, 0, 1)])
    time.sleep(0.3)
    short._sweep_at = 0.0
    short._sweep()
    left = {
        table: short._engine.rows(f"SELECT count(*) FROM {name}", {})[0][0]
        for table, name in short._engine.names.items()
    }
    assert left == {"outcomes": 2, "extents": 1, "runs": 1, "blobs": 1, "revocations": 1}


def test_a_deadlock_is_tried_again(url: str, opened: Open) -> None:
    """Somebody holds the second row of a batch and then wants the first: the server gives one of the two up."""
    backend = opened(url)
    backend.store_many([record(100)])
    table = f"{backend._engine.names['outcomes']}(run, first, count, expires_at, data)"
    insert = f"INSERT INTO {table} VALUES('r', :n, 1, 9e9, '')"
    other = plain(url).connect()
    if url.startswith("postgresql"):  # else it is this one that would look first
        other.execute(sa.text("SET deadlock_timeout = '60s'"))
    # MySQL gives up the one that has changed less.
    other.execute(sa.text(insert), [{"n": number} for number in range(1, 90)])
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(backend.store_many, [record(0), record(1)])
        _wait_until_blocked(url)
        other.execute(sa.text(insert), {"n": 0})
        other.rollback()
        assert storing.result(20) == []
    other.close()
    assert [each.first for each in backend.fetch_many("r")] == [0, 1, 100]


def _wait_until_blocked(url: str) -> None:
    """Until somebody waits for somebody's lock."""
    postgresql = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    mysql = "SELECT count(*) FROM information_schema.processlist WHERE state = 'Update' AND info LIKE 'INSERT%'"
    deadline = time.monotonic() + 10
    with plain(url).connect() as connection:
        while time.monotonic() < deadline:
            if connection.execute(sa.text(postgresql if url.startswith("postgresql") else mysql)).scalar_one():
                return
            connection.rollback()
    pytest.fail("nobody waits")


def test_mysqls_largest_packet(services: Services, opened: Open) -> None:
    """The server would hang up, which looks like an outage, and an outage is waited for."""
    backend = opened(services.common(MariadbServer).url, prefix=services.word())
    large = bytes(16 * 2**20)
    for attempt in (
        lambda: backend.store_many([record(0), record(1, large)]),
        lambda: backend.put_blob("sha", large),
        lambda: backend.save_run(RunRecord("r", "map", "f", 1, 1.0, "s", large)),
    ):
        with pytest.raises(PayloadTooLarge, match="max_allowed_packet"):
            attempt()
    assert backend.record_bytes is not None
    fits = bytes(backend.record_bytes)
    assert backend.store_many([record(0, fits)]) == []
    assert backend.fetch_many("r") == [record(0, fits)]


# ---------------------------------------------------------------- what goes wrong


def refused(url: str) -> QnbError:
    """Why it cannot be opened; said in time, and nowhere with the password."""
    begun = time.monotonic()
    with pytest.raises(QnbError) as caught:
        SqlBackend(url)
    assert time.monotonic() - begun < 20
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    return caught.value


def test_a_wrong_password(url: str) -> None:
    error = refused(url.replace(PASSWORD, "hush-hush%40"))
    assert isinstance(error, AccessDenied)
    assert "check user, password" in str(error)


def test_a_database_that_is_not_there(url: str, kind: type[Server]) -> None:
    name = "qnb" if kind is MariadbServer else "postgres"
    error = refused(url.replace(f"/{name}?", "/nowhere?"))
    if kind is MariadbServer:  # which tells only those who might make it
        assert isinstance(error, AccessDenied)
    else:
        assert isinstance(error, ConfigurationError)
        assert "create it" in str(error)
    assert "nowhere" in str(error)


def test_nobody_listens(kind: type[Server]) -> None:
    scheme = "mysql" if kind is MariadbServer else "postgresql"
    assert isinstance(refused(f"{scheme}://me:hush@127.0.0.1:{free_port()}/x"), BackendUnavailable)


def test_somebody_listens_and_says_nothing(kind: type[Server]) -> None:
    scheme = "mysql" if kind is MariadbServer else "postgresql"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(refused(f"{scheme}://me:hush@127.0.0.1:{port}/x"), BackendUnavailable)


def test_who_may_only_read(services: Services, opened: Open) -> None:
    url = with_options(services.common(MariadbServer).url, prefix=services.word())
    reader = url.replace("qnb:", "reader:", 1)
    assert isinstance(refused(reader), AccessDenied)  # the tables are not there, and cannot be made
    opened(url).store_many([record(0)])
    backend = opened(reader)
    assert backend.fetch_many("r") == [record(0)]
    with pytest.raises(AccessDenied, match="rights"):
        backend.store_many([record(1)])


def test_a_server_that_is_killed_and_comes_back(kind: type[Server], services: Services, opened: Open) -> None:
    server, url = services.killable(kind)
    backend = opened(url)
    kept = [record(number) for number in range(100)]
    backend.store_many(kept)
    backend.put_blob("sha", b"blob")
    server.kill()
    with pytest.raises(BackendUnavailable, match="check host"):
        backend.fetch_many("r")
    with pytest.raises(BackendUnavailable):
        backend.store_many([record(100)])
    server.start()
    assert backend.fetch_many("r") == kept
    assert backend.store_many([record(0, b"late"), record(100)]) == [record(0, b"late")]
    assert backend.get_blob("sha") == b"blob"


def test_after_the_end(url: str, opened: Open) -> None:
    backend = opened(url)
    backend.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        backend.fetch_many("r")
    assert PASSWORD not in f"{backend.url}{backend!r}{backend._address!r}"


def test_a_batch_is_few_statements(url: str, opened: Open) -> None:
    backend = opened(url)
    said: list[str] = []
    sa.event.listen(
        backend._engine._engine,  # type: ignore[attr-defined]
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: said.append(statement),
    )
    backend.store_many([record(number) for number in range(500)])
    assert len(said) <= 3, said


def test_a_result_that_mysql_does_not_take_is_a_failure_of_its_call(services: Services) -> None:
    """And no outage, which the worker would wait for."""
    url = with_options(services.common(MariadbServer).url, prefix=services.word())
    with qnb.Session(f"memory://{services.word()}", backend=url, workers=1) as session:
        with pytest.raises(PayloadTooLarge, match="at most"):
            session.submit(bytes, 10_000_000).result(timeout=30)
        assert session.submit(len, "abc").result(timeout=30) == 3


def test_a_run_rides_out_the_death_of_its_backend(kind: type[Server], services: Services, tmp_path: Path) -> None:
    """Outcomes wait in the workers; each is stored once, and the session gets all."""
    server, url = services.killable(kind)
    with qnb.Session(f"sqlite:///{tmp_path}/q.db", backend=url, workers=2) as session:
        batch = session.map(_short, range(500))
        next(batch.as_completed())
        server.kill()
        server.start()
        assert batch.results(timeout=90) == list(range(500))
        kept = session.backend.fetch_many(batch.run)
    assert sum(one.count for one in kept) == 500


def _short(number: int) -> int:
    time.sleep(0.004)
    return number
