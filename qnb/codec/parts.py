"""Content in the blob store, sealed and named by its hash; what is large in parts, named by the hash of the whole.

Where it is stored has the id of the key in its name, too: people with keys of their own may share a backend, and store
the same content, and none could open what another has sealed. Messages say the hash alone.

Nothing here holds more than a part besides the content itself. What is at most a part is one blob under its own name.
How large a part is the writer decides; a reader goes on until it has the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qnb.codec.pickling import Apart, loads
from qnb.codec.signing import BLOB, Signer
from qnb.errors import BadMessage, MessageError
from qnb.message import Blob

PART_BYTES = 4 << 20
_SEAL_BYTES = 256  # and less, that sealing adds

Get = Callable[[str], bytes | None]
Read = Callable[[int, int], bytes]


def key_of(content: bytes | memoryview) -> str:
    """The name of content in the blob store: half of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def part_bytes(backend: Any) -> int:
    """Bytes of a part in this backend, which may have a bound on what it takes at once."""
    most = getattr(backend, "record_bytes", None)
    return PART_BYTES if most is None else max(1, min(PART_BYTES, most - _SEAL_BYTES))


def names_of(blob: Blob) -> list[tuple[str, int]]:
    """Name and size of everything a blob is made of."""
    return [(blob.key, blob.size), *blob.buffers]


def stored_names(key: str, signer: Signer) -> list[str]:
    """What content named by its hash may be called in the backend: under the key that seals, then under the others."""
    return [f"{key}.{key_id}" for key_id in signer.key_ids]


def put_sealed(backend: Any, signer: Signer, key: str, purpose: bytes, body: bytes) -> None:
    """Store content under its hash, for those who have the key that seals it."""
    backend.put_blob(stored_names(key, signer)[0], signer.seal(purpose, body))


def get_sealed(get: Get, signer: Signer, key: str) -> bytes | None:
    """Content as it was sealed with a key that this side has; None when there is none of that."""
    return next((sealed for name in stored_names(key, signer) if (sealed := get(name)) is not None), None)


def put_parts(backend: Any, signer: Signer, key: str, size: int, read: Read) -> None:
    """Store content under its name; `read` gives what is at an offset, of so many bytes."""
    most = part_bytes(backend)
    for number, at in enumerate(range(0, max(1, size), most)):
        name = key if size <= most else f"{key}-{number}"
        put_sealed(backend, signer, name, BLOB, read(at, min(most, size - at)))


def get_parts(get: Get, signer: Signer, key: str, size: int) -> Iterator[bytes]:
    """The content part by part; MessageError when it is gone, or is not what its name says."""
    digest, at, number = hashlib.sha256(), 0, 0
    whole = get_sealed(get, signer, key) if size <= PART_BYTES else None
    while number == 0 or (at < size and whole is None):
        sealed = get_sealed(get, signer, f"{key}-{number}") if whole is None else whole
        if sealed is None:
            raise MessageError(f"the backend no longer has the blob {key} that the message is about: submit it again")
        part = signer.unseal(BLOB, sealed)
        digest.update(part)
        at, number = at + max(1, len(part)), number + 1
        yield part
    if digest.hexdigest()[:32] != key:
        raise MessageError(f"the blob {key} has another content than its name says: refused")


def put_object(store: Callable[[str, bytes | memoryview], None], pickled: bytes, apart: Apart, shared: bool) -> Blob:
    """Put a pickle and the memory left out of it aside; what stands for them."""
    buffers = []
    for memory in apart.buffers:
        key = key_of(memory)
        store(key, memory)
        buffers.append((key, memory.nbytes))
    key = key_of(pickled)
    store(key, pickled)
    return Blob(key, len(pickled), buffers, shared)


def get_object(get: Get, signer: Signer, blob: Blob) -> Any:
    """The object; its memory is its own, and may be written to."""
    whole = [_gather(get, signer, key, size) for key, size in blob.buffers]
    return open_object(bytes(_gather(get, signer, blob.key, blob.size)), whole)


def open_object(pickled: bytes, buffers: Sequence[Any]) -> Any:
    """Open a pickle with the memory that was left out of it; BadMessage where that is not all its own."""
    left = iter(buffers)
    value = loads(pickled, left)
    if next(left, None) is not None:
        raise BadMessage("a value came with memory that is not its own: refused")
    return value


def _gather(get: Get, signer: Signer, key: str, size: int) -> bytearray:
    content, at = bytearray(size), 0
    for part in get_parts(get, signer, key, size):
        if at + len(part) > size:
            raise MessageError(f"the blob {key} is larger than the message about it says: refused")
        content[at : at + len(part)] = part
        at += len(part)
    return content
