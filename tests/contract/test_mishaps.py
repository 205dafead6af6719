"""What is in the way of values on their way: blobs that are gone, disks and stores that are full. Each costs the calls
that it is about, and no others."""

from __future__ import annotations

import builtins
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import qnb
from qnb.codec.parts import key_of
from qnb.codec.references import encode_referring
from qnb.errors import StorageFull
from qnb.message import Blob, Frame, Function
from qnb.worker import dependencies, files, opening

LARGE = 6 << 20
_numbers = itertools.count()


def inc(value: int) -> int:
    return value + 1


def size(value: Any) -> int:
    return int(value.nbytes)


def make(fill: int) -> Any:
    import numpy

    return numpy.full(LARGE, fill, dtype="uint8")


@pytest.fixture
def alone(environment: None) -> Iterator[qnb.Session]:
    """A session whose worker is of this process, where things can be broken, and its own."""
    with qnb.Session(f"memory://mishaps-{os.getpid()}-{next(_numbers)}", workers=1) as opened:
        yield opened


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on, so many files of workers cannot be written."""
    left = [0]

    def open_file(path: str, mode: str = "r") -> Any:
        if mode == "wb" and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return builtins.open(path, mode)

    monkeypatch.setattr(files, "open", open_file, raising=False)
    monkeypatch.setattr(opening, "FULL_TIMES", 3)
    monkeypatch.setattr(dependencies, "FULL_LOOKS", 3)

    def fill(times: int) -> None:
        left[0] = times

    return fill


def test_no_room_for_files(alone: qnb.Session, full: Callable[[int], None]) -> None:
    """The calls that need them fail with the remedy, after some tries; the worker goes on."""
    full(1000)
    failing = alone.submit(size, make(1))
    assert alone.submit(inc, 1).result(60) == 2
    error = failing.exception(60)
    assert isinstance(error, StorageFull)
    assert "TMPDIR names another place" in str(error)
    full(0)
    assert alone.submit(size, make(2)).result(60) == LARGE


def test_room_for_files_again(alone: qnb.Session, full: Callable[[int], None]) -> None:
    full(2)
    assert alone.submit(size, make(1)).result(60) == LARGE


def leave_nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lane has made is fetched by who needs it, as from another worker."""
    take_in = files.Files.take_in

    def forgetful(self: files.Files, *arguments: Any) -> Any:
        found = take_in(self, *arguments)
        for key in list(self._sizes):
            del self._sizes[key]
            os.unlink(os.path.join(self.folder, key))
        return found

    monkeypatch.setattr(files.Files, "take_in", forgetful)


@pytest.mark.parametrize("times", [2, 1000])
def test_no_room_for_the_value_of_another(
    alone: qnb.Session, full: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    leave_nothing_at_hand(monkeypatch)
    full(times)
    waiting = alone.submit(size, alone.submit(make, 1))
    if times == 2:
        assert waiting.result(60) == LARGE
    else:
        error = waiting.exception(60)
        assert isinstance(error, qnb.DependencyFailed)
        assert "TMPDIR names another place" in str(error)


def test_a_blob_that_is_gone_fails_who_refers_to_it(alone: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of its frame's other calls."""
    values = [make(fill) for fill in range(4)]
    gone, put = key_of(values[2].data), alone.backend.put_blob
    monkeypatch.setattr(alone.backend, "put_blob", lambda key, data: None if gone in key else put(key, data))
    batch = alone.map(size, values, chunksize=4)
    assert batch.wait(60)
    assert batch.counts == {"done": 3, "failed": 1}
    assert f"no longer has the blob {gone}" in str(batch[2].exception())
    assert batch[3].result() == LARGE


def test_a_blob_that_is_gone_and_an_outcome_that_is_there(alone: qnb.Session) -> None:
    """Of a frame that comes again, nothing is fetched for calls that are over."""
    gone = Blob("0" * 32, 1)
    frame = Frame("run", 3, 3, Function(bytes(16), "f"), encode_referring([(b"", [gone]), b"", (b"", [gone])]))
    bring = alone._workers._worker.opening.bring
    assert bring(frame, [(3, 1), (5, 1)]).refused == []
    assert [(first, count) for first, count, _ in bring(frame, [(3, 1)]).refused] == [(5, 1)]
    assert [(first, count) for first, count, _ in bring(frame, []).refused] == [(3, 1), (5, 1)]
