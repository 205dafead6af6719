"""What a worker fetches for its lanes: each file once, and none waits for another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qnb.backends.memory import MemoryBackend
from qnb.codec.parts import key_of, put_sealed
from qnb.codec.signing import BLOB, Signer
from qnb.message import Blob
from qnb.worker.files import Files

SIGNER = Signer(b"k" * 20)
LARGE, SMALL = b"large", b"small"


class Slow(MemoryBackend):
    """The large one comes when it is let through."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked, self.let = threading.Event(), threading.Event()
        self.times = 0

    def get_blob(self, key: str) -> bytes | None:
        if key.startswith(key_of(LARGE)):
            self.times += 1
            self.asked.set()
            assert self.let.wait(20)
        return super().get_blob(key)


@pytest.fixture
def slow(request: pytest.FixtureRequest) -> Iterator[Slow]:
    backend = Slow(f"memory://{request.node.name}")
    for content in (LARGE, SMALL):
        put_sealed(backend, SIGNER, key_of(content), BLOB, content)
    yield backend
    backend.let.set()
    backend.close()


@pytest.fixture
def files(slow: Slow) -> Iterator[Files]:
    found = Files(slow, SIGNER, set)
    yield found
    found.close()


def blob(content: bytes) -> Blob:
    return Blob(key_of(content), len(content))


def test_a_large_one_on_its_way_holds_up_no_other(slow: Slow, files: Files, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(files.fetch, [blob(LARGE)])
        assert slow.asked.wait(20)
        assert files.fetch([blob(SMALL)]) == {}
        assert Path(files.folder, key_of(SMALL)).read_bytes() == SMALL
        left = tmp_path / "left"
        left.mkdir()
        (left / key_of(b"made")).write_bytes(b"made")
        files.take_in([(str(left), blob(b"made"))], SIGNER, {})
        assert Path(files.folder, key_of(b"made")).read_bytes() == b"made"
        assert not large.done()
        slow.let.set()
        assert large.result(20) == {}


def test_two_that_ask_for_the_same_fetch_it_once(slow: Slow, files: Files) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(files.fetch, [blob(LARGE)]) for _ in range(2)]
        assert slow.asked.wait(20)
        end = time.monotonic() + 20
        while not files._came._waiters and time.monotonic() < end:  # type: ignore[attr-defined]
            time.sleep(0.005)
        slow.let.set()
        assert [each.result(20) for each in both] == [{}, {}]
    assert slow.times == 1
    assert Path(files.folder, key_of(LARGE)).read_bytes() == LARGE


def test_what_one_could_not_have_the_next_tries_again(slow: Slow, files: Files) -> None:
    slow.let.set()
    missing = blob(b"nowhere")
    assert list(files.fetch([missing])) == [missing.key]
    put_sealed(slow, SIGNER, missing.key, BLOB, b"nowhere")
    assert files.fetch([missing]) == {}
