"""A note that is lost while others come: what the backend has, or workers remember, is asked for all the same."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import qnb
from qnb.codec.signing import NOTE, OUTCOMES, decode
from qnb.message import WORKER_PREFIX, Command, Note, Outcomes, Stored
from qnb.session import collector
from qnb.session.session import Session

SECONDS = 10.0


@contextmanager
def never_silent(session: Session) -> Iterator[None]:
    """It hears of something ten times a second."""
    over = threading.Event()

    def talk() -> None:
        while not over.wait(0.1):
            session.bus.post_many([Note(session.peer, "nothing", session.signer.seal(NOTE, b""))])

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "OVERTAKEN_SECONDS", 0.2)


def test_what_the_backend_has_is_found_without_a_silence() -> None:
    with qnb.Session("memory://overtaken", workers=0) as session:
        lost, waiting = session.submit(abs, -1), session.submit(abs, -2)
        session.flush()
        run = lost.id.partition(":")[0]
        outcomes = session.signer.pack(OUTCOMES, Outcomes(run, 0, 1, b"", b"m\x91\x07", b"", "w"))
        with never_silent(session):
            session.backend.store_many([Stored(run, 0, 1, outcomes)])
            assert lost.result(SECONDS) == 7
            assert not waiting.done()
        session.shutdown(wait=False, cancel_futures=True)


def test_workers_are_asked_again_without_a_silence() -> None:
    with qnb.Session("memory://overtaken-rpc", "rpc:", workers=0) as session:
        worker = session.bus.join(f"{WORKER_PREFIX}w")
        worker.beat(b"")
        future = session.submit(abs, -1)
        session.flush()
        with never_silent(session):
            found = _wait(lambda: [n for n in worker.receive_many(10, 0.1) if n.kind == "command"])
        command = decode(session.signer.unseal(NOTE, found[0].body), Command)
        run = future.id.partition(":")[0]
        assert (command.name, command.arguments) == ("outcomes", {"peer": session.peer, "run": run, "spans": [[0, 1]]})
        worker.close()
        session.close()


def _wait(condition: Callable[[], list[Note]]) -> list[Note]:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "nobody was asked"
    return found
