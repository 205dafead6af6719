"""What is put aside: parts as large as the backend takes them, names that are no paths, memory that is its own."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qnb.backends.memory import MemoryBackend
from qnb.codec import parts
from qnb.codec.parts import get_object, get_sealed, key_of, put_object, put_parts, put_sealed
from qnb.codec.pickling import Apart, dumps_apart
from qnb.codec.references import (
    blobs_of,
    decode_entries,
    decode_referring,
    encode_entries,
    encode_referring,
    split_values,
)
from qnb.codec.signing import BLOB, Signer
from qnb.errors import BadMessage, MessageError, PayloadTooLarge
from qnb.message import Blob
from qnb.worker.inputs import Inputs

SIGNER = Signer(b"the key of the tests of parts")


class Bounded(MemoryBackend):
    """As a database server is, that takes so much at once and no more."""

    record_bytes: int | None = None

    def put_blob(self, key: str, data: bytes) -> None:
        if self.record_bytes is not None and len(data) > self.record_bytes:
            raise PayloadTooLarge(f"{len(data)} bytes")
        super().put_blob(key, data)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Bounded]:
    opened = Bounded(f"memory://parts-{id(request)}")
    yield opened
    opened.close()


def put_aside(backend: Bounded, value: object) -> Blob:
    apart = Apart(1 << 16)
    pickled = dumps_apart(value, apart)

    def store(key: str, content: bytes | memoryview) -> None:
        view = memoryview(content)
        put_parts(backend, SIGNER, key, len(view), lambda at, size: bytes(view[at : at + size]))

    return put_object(store, pickled, apart, shared=False)


@pytest.mark.parametrize("most", [None, 300_000, parts.PART_BYTES + 10])
def test_parts_are_as_large_as_the_backend_takes_them(backend: Bounded, most: int | None) -> None:
    """Who reads need not know how large that is, or was."""
    backend.record_bytes = most
    array = np.arange(5 << 20, dtype="uint8")
    for value in (array, array[: 1 << 20], array[:1]):
        blob = put_aside(backend, value)
        backend.record_bytes = None
        np.testing.assert_array_equal(get_object(backend.get_blob, SIGNER, blob), value)
        backend.record_bytes = most


@pytest.mark.parametrize("most", [None, 300_000])
def test_a_part_that_is_gone(backend: Bounded, most: int | None) -> None:
    backend.record_bytes = most
    blob = put_aside(backend, np.arange(5 << 20, dtype="uint8"))

    def get(name: str) -> bytes | None:
        return None if "-1." in name else backend.get_blob(name)

    with pytest.raises(MessageError, match="no longer has the blob"):
        get_object(get, SIGNER, blob)
    with pytest.raises(MessageError, match="no longer has the blob"):
        get_object(lambda name: None, SIGNER, blob)


def test_memory_that_is_not_a_values_own_is_refused(backend: Bounded, tmp_path: Path) -> None:
    """A pickle takes what was left out of it by its order alone: one too many, and others have got another's."""
    whole = put_aside(backend, np.arange(1 << 17, dtype="uint8"))
    blob = Blob(whole.key, whole.size, [*whole.buffers, *whole.buffers])
    with pytest.raises(BadMessage, match="not its own"):
        get_object(backend.get_blob, SIGNER, blob)
    pickled = pickle.dumps(1)
    for content in (pickled, b"memory"):
        (tmp_path / key_of(content)).write_bytes(content)
    with pytest.raises(BadMessage, match="not its own"):
        Inputs(str(tmp_path)).load(Blob(key_of(pickled), len(pickled), [(key_of(b"memory"), 6)]))


@pytest.mark.parametrize("key", ["", "../../../etc/passwd", "a/" + "0" * 30, "0" * 31, "G" * 32, "0" * 32 + "\n"])
def test_a_name_that_is_no_hash_is_refused(key: str) -> None:
    """It is the name of a file, too."""
    for blob in (Blob(key, 1), Blob("0" * 32, 1, [(key, 1)])):
        with pytest.raises(BadMessage):
            decode_referring(encode_referring([(b"", [blob])]))
        entries = encode_entries([(b"", [blob])])
        with pytest.raises(BadMessage):
            decode_entries(entries)
        with pytest.raises(BadMessage):
            blobs_of(split_values(entries, [0])[0])


def test_a_size_below_nothing_is_refused() -> None:
    for blob in (Blob("0" * 32, -1), Blob("0" * 32, 1, [("0" * 32, -1)])):
        with pytest.raises(BadMessage):
            decode_referring(encode_referring([(b"", [blob])]))


def test_what_is_stored_says_who_can_open_it(backend: Bounded) -> None:
    """The same content of two keys is there twice; who has both keys finds either, and none is told of the other's."""
    ours, theirs = Signer(b"the key of one of two people"), Signer(b"the key of the other of them")
    both = Signer(b"the key of the other of them\nthe key of one of two people")
    key = key_of(b"content")
    put_sealed(backend, ours, key, BLOB, b"content")
    assert get_sealed(backend.get_blob, theirs, key) is None
    assert both.unseal(BLOB, get_sealed(backend.get_blob, both, key) or b"") == b"content"
    put_sealed(backend, both, key, BLOB, b"content")
    for signer in (ours, theirs, both):
        assert signer.unseal(BLOB, get_sealed(backend.get_blob, signer, key) or b"") == b"content"


def test_a_usual_reader_asks_once(backend: Bounded) -> None:
    """A key, a question: nobody pays for the keys that others have."""
    key, asked = key_of(b"content"), list[str]()
    put_sealed(backend, SIGNER, key, BLOB, b"content")

    def get(name: str) -> bytes | None:
        asked.append(name)
        return backend.get_blob(name)

    assert get_sealed(get, SIGNER, key) is not None
    assert asked == [f"{key}.{SIGNER.key_id}"]
