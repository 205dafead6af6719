"""`rpc:`: results that travel to the session that asked, and are kept nowhere else."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import qnb
from qnb.backends.rpc import RpcBackend
from qnb.codec.claims import halves, lighten
from qnb.codec.payloads import count_calls, encode_columns
from qnb.errors import PayloadTooLarge, Unsupported
from qnb.message import Frame, Function, Stored
from qnb.session import session as session_module

KEY = "the key of these tests, used for nothing else"
_names = (f"memory://rpc-tests-{number}" for number in itertools.count())


def test_it_remembers_the_latest_only() -> None:
    backend = RpcBackend("rpc:?kept=1000")
    for number in range(10):
        assert backend.store_many([Stored("run", number, 1, b"x" * 300)]) == []
    assert [record.first for record in backend.fetch_many("run")] == [7, 8, 9]
    assert len(backend.store_many([Stored("run", 9, 1, b"y")])) == 1, "the first one wins"
    backend.close()


def test_it_has_no_blob_store() -> None:
    backend = RpcBackend("rpc:")
    with pytest.raises(Unsupported, match=r"backend='sqlite:'"):
        backend.put_blob("key", b"x")
    assert backend.get_blob("key") is None
    assert (backend.durable, backend.blobs, backend.url) == (False, False, "rpc:")
    backend.close()


def frame(values: list[object], code: bytes = b"code") -> Frame:
    return Frame("run", 5, len(values), Function(b"h", "f", code), encode_columns([values], (), True))


def test_without_a_blob_store_a_message_has_all_or_is_refused() -> None:
    small = frame([1, 2, 3])
    assert lighten(small, 100_000, None) is small
    assert lighten(frame([1], b"c" * 50_000), 100_000, None).function.code is not None, "code rides along"
    with pytest.raises(PayloadTooLarge, match=r"f has 100,0\d\d bytes in its arguments, and .* takes 95,904"):
        lighten(frame([b"x" * 100_000]), 100_000, None)
    with pytest.raises(PayloadTooLarge, match=r"200,000 bytes in its code"):
        lighten(frame([1], b"c" * 200_000), 100_000, None)


def test_halves() -> None:
    first, second = halves(frame([b"a", b"b", b"c"]))
    assert [(part.first, part.count, count_calls(part.args)) for part in (first, second)] == [(5, 1, 1), (6, 2, 2)]


@pytest.fixture
def session() -> Iterator[qnb.Session]:
    place = next(_names) + "?max_message=20000"
    with qnb.Session(place, "rpc:", workers=1, key=KEY) as opened:
        yield opened


def test_what_fits_in_smaller_messages_is_split(session: qnb.Session) -> None:
    """Neither the arguments of one map nor its results fit into one message here."""
    batch = session.map(lambda data: data[::-1], [b"%d" % number * 1500 for number in range(10)] * 5, chunksize=50)
    assert batch.results(20) == [(b"%d" % number * 1500)[::-1] for number in range(10)] * 5


def test_what_fits_nowhere_fails_by_itself(session: qnb.Session) -> None:
    batch = session.map(lambda size: b"x" * size, [10, 50_000, 20], chunksize=3)
    batch.wait(20)
    assert [batch[index].exception() is None for index in range(3)] == [True, False, True]
    with pytest.raises(qnb.PayloadTooLarge, match=r"rpc: takes 20,000 at most"):
        batch[1].result()
    with pytest.raises(qnb.PayloadTooLarge, match=r"in its arguments"):
        session.submit(len, b"x" * 30_000).result(20)
    assert session.submit(len, b"abc").result(20) == 3


def test_a_lost_note_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mailbox that lost notes, as one does whose server was restarted: workers tell again what they remember."""
    with qnb.Session(next(_names), "rpc:", workers=1, key=KEY) as session:
        assert session.submit(abs, -1).result(20) == 1
        worker_backend = RpcBackend("rpc:")  # a worker elsewhere has a memory of its own
        session._workers._worker.backend = worker_backend
        session._workers._worker.settling._backend = worker_backend
        session._workers._worker.settling._at_once = None
        lost: list[Any] = []
        take = session.collector._take

        def lose_first(note: Any) -> None:
            if note.kind == "outcomes" and not lost:
                lost.append(note)
            else:
                take(note)

        monkeypatch.setattr(session.collector, "_take", lose_first)
        assert session.submit(abs, -2).result(20) == 2
        assert len(lost) == 1


def test_the_warning_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_warned_of_rpc", False)
    with pytest.warns(qnb.ResultsNotKept, match=r"amqp://user:\*\*\*@host .* backend='sqlite:'"):
        session_module._warn_of_rpc("amqp://user:secret@host")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session_module._warn_of_rpc("amqp://user:secret@host")


def test_partners() -> None:
    from qnb.registry import partner_url

    assert partner_url("redis://host/0") == "redis://host/0"
    assert partner_url("kafka://host") == "rpc:"
