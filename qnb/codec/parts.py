"""Large content in the blob store: in parts, each sealed, named by the hash of the whole.

Nothing here holds more than a part besides the content itself. What is at most a part is one blob under its own name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from qnb.codec.pickling import Apart, loads
from qnb.codec.signing import BLOB, Signer
from qnb.errors import MessageError
from qnb.message import Blob

PART_BYTES = 4 << 20

Put = Callable[[str, bytes], None]
Get = Callable[[str], bytes | None]
Read = Callable[[int, int], bytes]


def key_of(content: bytes | memoryview) -> str:
    """The name of content in the blob store: half of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def part_names(key: str, size: int) -> list[str]:
    """The names of its parts."""
    count = -(-size // PART_BYTES)
    return [key] if count <= 1 else [f"{key}-{number}" for number in range(count)]


def names_of(blob: Blob) -> list[tuple[str, int]]:
    """Name and size of everything a blob is made of."""
    return [(blob.key, blob.size), *blob.buffers]


def put_parts(put: Put, signer: Signer, key: str, size: int, read: Read) -> None:
    """Store content under its name; `read` gives what is at an offset, of so many bytes."""
    for number, name in enumerate(part_names(key, size)):
        at = number * PART_BYTES
        put(name, signer.seal(BLOB, read(at, min(PART_BYTES, size - at))))


def get_parts(get: Get, signer: Signer, key: str, size: int) -> Iterator[bytes]:
    """The content part by part; MessageError when it is gone, or is not what its name says."""
    digest = hashlib.sha256()
    for name in part_names(key, size):
        sealed = get(name)
        if sealed is None:
            raise MessageError(f"the backend no longer has the blob {key} that the message is about: submit it again")
        part = signer.unseal(BLOB, sealed)
        digest.update(part)
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
    return loads(bytes(_gather(get, signer, blob.key, blob.size)), whole)


def _gather(get: Get, signer: Signer, key: str, size: int) -> bytearray:
    content, at = bytearray(size), 0
    for part in get_parts(get, signer, key, size):
        if at + len(part) > size:
            raise MessageError(f"the blob {key} is larger than the message about it says: refused")
        content[at : at + len(part)] = part
        at += len(part)
    return content
