"""No pickle is opened before its seal holds.

A payload that makes a file when it is opened is sent to a real worker and to a real session, in each place where a
pickle travels: signed with another key, altered on the way, or sealed for another purpose. The file is never made.
Sealed as it should be, the same payload makes the file: the test would see it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import qnb
from qnb.codec.code import ANY_PYTHON, Archive, Code, write
from qnb.codec.functions import pack
from qnb.codec.parts import stored_names
from qnb.codec.payloads import encode_pickled
from qnb.codec.signing import BLOB, CODE, FRAME, NOTE, OUTCOMES, RUN, Signer, encode
from qnb.errors import MessageError
from qnb.message import DONE, FAILED, Envelope, Failure, Frame, Function, Note, Outcomes, RunRecord, Stored
from qnb.session.runs import Detail
from tests.contract.conftest import KEY, Gate, until

SECONDS = 20.0
OURS = Signer(KEY.encode())
THEIRS = Signer(b"the key of somebody else, as long as it has to be")
Seal = Callable[[bytes, bytes], bytes]


class Mine:
    """Whoever opens it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def altered(purpose: bytes, body: bytes) -> bytes:
    """The MAC is of another body."""
    sealed = OURS.seal(purpose, b"harmless" + body)
    return sealed[:39] + body


def under_our_name(purpose: bytes, body: bytes) -> bytes:
    """Another key's MAC, under the id of ours."""
    return OURS.seal(purpose, b"")[:6] + THEIRS.seal(purpose, body)[6:]


def for_another_purpose(purpose: bytes, body: bytes) -> bytes:
    return OURS.seal(b"x", body)


FORGERIES: tuple[Seal, ...] = (THEIRS.seal, altered, under_our_name, for_another_purpose)


@pytest.fixture(params=FORGERIES, ids=lambda seal: getattr(seal, "__name__", "another"))
def forge(request: pytest.FixtureRequest) -> Seal:
    """One way to seal wrongly."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The file that is never made."""
    return tmp_path / "opened"


def mined(trap: Path) -> bytes:
    data = pickle.dumps(Mine(trap), 5)
    assert not trap.exists()
    return data


def hash_of(code: bytes) -> bytes:
    return hashlib.sha256(code).digest()[:16]


# Towards a worker -----------------------------------------------------------------------------------------------


def frames(session: qnb.Session, trap: Path, seal: Seal) -> dict[str, tuple[Frame, Seal]]:
    """By the place of the pickle: a frame, and how it is itself to be sealed. What it leaves in the blob store is
    sealed with `seal`, the frame around that with the right key."""
    good = pack(abs)
    code = write(bytes(ANY_PYTHON), Code("", pickle=mined(trap)))
    args, none = encode_pickled([mined(trap)]), encode_pickled([pickle.dumps(((1,), {}))])
    evil = Function(hash_of(code), "evil", code)
    run = f"{session.id}-evil"
    found = {
        "function": (Frame(run, 0, 1, evil, none, reply_to=session.peer), seal),
        "coroutine": (Frame(run, 0, 1, replace(evil, is_async=True), none, reply_to=session.peer), seal),
        "arguments": (Frame(run, 0, 1, good, args, reply_to=session.peer), seal),
    }
    if session.backend.blobs:
        code = write(bytes(ANY_PYTHON), Code("kept aside", pickle=mined(trap)))
        name = hashlib.sha256(args).hexdigest()[:32]
        put(session, hash_of(code).hex(), seal(CODE, code))
        put(session, name, seal(BLOB, args))
        aside = Function(hash_of(code), "evil", None)
        found["function in a blob"] = (Frame(run, 0, 1, aside, none, reply_to=session.peer), OURS.seal)
        found["arguments in a blob"] = (Frame(run, 0, 1, good, b"", reply_to=session.peer, blob=name), OURS.seal)
        found["modules in a blob"] = (Frame(run, 0, 1, shipped(session, trap, seal), none), OURS.seal)
    return found


def put(session: qnb.Session, key: str, sealed: bytes) -> None:
    """Where a worker with the right key looks for it, whoever has sealed it."""
    session.backend.put_blob(stored_names(key, OURS)[0], sealed)


def shipped(session: qnb.Session, trap: Path, seal: Seal) -> Function:
    """A function of a module that would make the file when it is imported."""
    buffer, module = io.BytesIO(), f"evil_{trap.parent.name}"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{module}.py", f"open({str(trap)!r}, 'w').close()\nfrom builtins import abs\n")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
    put(session, digest, seal(BLOB, buffer.getvalue()))
    code = write(bytes(ANY_PYTHON), Code("", archives=[Archive("evil", digest)], module=module, name="abs"))
    return Function(hash_of(code), "evil", code)


def test_a_worker_opens_nothing_unsealed(session: qnb.Session, trap: Path, forge: Seal) -> None:
    sent = frames(session, trap, forge)
    before = len(session.broker.dead_letters("qnb"))
    bodies = [seal(FRAME, encode(frame)) for frame, seal in sent.values()]
    session.broker.publish_many([Envelope("qnb", body, f"evil:{i}") for i, body in enumerate(bodies)])
    until(lambda: len(session.broker.dead_letters("qnb")) == before + len(bodies))
    assert session.map(abs, range(-4, 0)).results(SECONDS) == [4, 3, 2, 1], "and it goes on"
    assert not trap.exists()
    letters = session.broker.dead_letters("qnb")
    kept = {letter.body for letter in letters}
    assert set(bodies) <= kept, "kept as they came"
    assert all(letter.reason for letter in letters)


@pytest.mark.parametrize(
    "where", ["function", "arguments", "function in a blob", "arguments in a blob", "modules in a blob"]
)
def test_the_payload_would_have_worked_in_a_worker(session: qnb.Session, trap: Path, where: str) -> None:
    frame, seal = frames(session, trap, OURS.seal)[where]
    session.broker.publish_many([Envelope("qnb", seal(FRAME, encode(frame)), "live:0")])
    until(trap.exists)


# Towards a session ----------------------------------------------------------------------------------------------


def outcomes_of(run: str, index: int, trap: Path) -> dict[str, Outcomes]:
    """By the place of the pickle."""
    failure = Failure("ValueError", "as told", "", mined(trap))
    value = b"p" + encode([mined(trap)])
    return {
        "result": Outcomes(run, index, 1, bytes([DONE]), value, b"", "evil"),
        "exception": Outcomes(run, index, 1, bytes([FAILED]), b"", b"", "evil", failures={0: failure}),
    }


def test_a_session_opens_nothing_unsealed_that_it_is_sent(
    session: qnb.Session, trap: Path, forge: Seal, blocked: Gate
) -> None:
    single, batch = session.submit(abs, -7), session.map(abs, [-7])
    session.flush()
    notes = []
    for run in (single.id.rpartition(":")[0], batch.run):
        index = int(single.id.rpartition(":")[2]) if run != batch.run else 0
        found = outcomes_of(run, index, trap).values()
        notes += [Note(session.peer, "outcomes", forge(OUTCOMES, encode(outcomes))) for outcomes in found]
    kinds = ("progress", "reply", "event", "stored")
    notes += [Note(session.peer, kind, forge(NOTE, mined(trap))) for kind in kinds]
    session.bus.post_many(notes)
    blocked.open()
    assert single.result(SECONDS) == 7
    assert batch.results(SECONDS) == [7]
    assert not trap.exists()


def test_a_session_opens_nothing_unsealed_that_it_finds(
    session: qnb.Session, trap: Path, forge: Seal, blocked: Gate
) -> None:
    """Stored in the backend in the place of a call's outcome."""
    batch = session.map(abs, [-7, -8])
    session.flush()
    for index, outcomes in enumerate(outcomes_of(batch.run, 0, trap).values()):
        moved = replace(outcomes, first=index)
        session.backend.store_many([Stored(batch.run, index, 1, forge(OUTCOMES, encode(moved)))])
    other = session.map(abs, [-9])
    session.flush()
    session.collector.fetch(batch.run)
    for call in range(2):
        with pytest.raises(MessageError):
            batch[call].result(0)
    assert "evil" not in set(batch.data.worker_names)
    blocked.open()
    assert other.results(SECONDS) == [9], "and nobody else is hurt"
    assert not trap.exists()
    session.forget(batch.run)


def test_the_payload_would_have_worked_in_a_session(session: qnb.Session, trap: Path, blocked: Gate) -> None:
    batch = session.map(abs, [-7])
    session.flush()
    outcomes = outcomes_of(batch.run, 0, trap)["result"]
    session.bus.post_many([Note(session.peer, "outcomes", OURS.pack(OUTCOMES, outcomes))])
    batch.wait(SECONDS)
    assert trap.exists()


# Runs -----------------------------------------------------------------------------------------------------------


def test_arguments_of_a_run(session: qnb.Session, trap: Path, forge: Seal) -> None:
    """Its details, and the blob with its arguments."""
    if not session.backend.blobs:
        pytest.skip("this backend keeps no runs")
    detail = Detail(b"h" * 16, False, "", {}, ["x"], [], [f"{trap.parent.name}-{forge!r}"])
    session.backend.put_blob(detail.parts[0], forge(BLOB, pickle.dumps([[Mine(trap)]], 5)))
    for run, data in (("evil-0", OURS.pack(RUN, detail)), ("evil-1", forge(RUN, encode(detail)))):
        session.backend.save_run(RunRecord(run, "map", "evil", 1, time.time(), "evil", data))
        with pytest.raises(MessageError):
            session.attach(run)
    assert not trap.exists()
    assert {"evil-0", "evil-1"} <= set(session.runs().index)
    session.forget("evil-0")
    session.forget("evil-1")
    assert not trap.exists()


def test_arguments_of_a_run_would_have_worked(session: qnb.Session, trap: Path) -> None:
    if not session.backend.blobs:
        pytest.skip("this backend keeps no runs")
    detail = Detail(b"h" * 16, False, "", {}, ["x"], [], [f"{trap.parent.name}-good"])
    session.backend.put_blob(detail.parts[0], OURS.seal(BLOB, pickle.dumps([[Mine(trap)]], 5)))
    session.backend.save_run(RunRecord("evil-2", "map", "evil", 0, time.time(), "evil", OURS.pack(RUN, detail)))
    session.attach("evil-2")
    session.forget("evil-2")
    assert trap.exists()
