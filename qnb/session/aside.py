"""Arguments on their way out: what they refer to is named, what is large is put aside in the blob store, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from qnb.backends.base import Backend
from qnb.codec.parts import put_object, put_parts
from qnb.codec.payloads import PLAIN, encode_columns, encode_pickled
from qnb.codec.pickling import ARRAY_BYTES, Apart, dumps, dumps_apart, dumps_each, dumps_small, names_by_value
from qnb.codec.references import Call, Referable, Reference, dumps_referring, encode_referring
from qnb.codec.signing import Signer
from qnb.errors import CannotPickle, StorageFull
from qnb.message import Blob
from qnb.session.stored import StoredBlobs

LARGE_BYTES = 4 << 20  # an argument from this size on is put aside
SHARED_BYTES = ARRAY_BYTES  # and one from this size on that many calls have
_SEEN = 256
_SMALL = frozenset((type(None), bool, int, float))
_TEXT = (str, bytes)
_NESTED = (list, dict)
_NO_NAMES: dict[str, Any] = {}


class Memo:
    """What became of the objects in these columns, which stay alive meanwhile. `by_name`: of a function whose workers
    may open no pickle."""

    def __init__(self, columns: Sequence[Sequence[Any]], by_name: bool = False) -> None:
        self._columns = columns
        self.by_name = by_name
        self.mixed = False  # whether some calls have to be looked at one by one
        self._often: set[int] | None = None
        self.blobs: dict[int, Blob | None] = {}

    def often(self, value: Any) -> bool:
        """Whether several calls have this very object."""
        if self._often is None:  # asked for large ones only, which most runs do not have
            counts = Counter(key for column in self._columns for key in map(id, column))
            self._often = {key for key, count in counts.items() if count > 1}
        return id(value) in self._often


class Aside:
    """Of one session. `limit`: bytes that a message of its broker has room for, or None."""

    def __init__(self, backend: Backend, signer: Signer, limit: int | None, stored: StoredBlobs) -> None:
        self._backend = backend
        self._signer = signer
        self._large = LARGE_BYTES if limit is None else min(LARGE_BYTES, limit // 2)
        self._seen: dict[tuple[int, int, int], None] = {}  # what large arguments looked like
        self._stored = stored

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any], memo: Memo | None = None) -> bytes | Call:
        """One call; with `memo` one of a run that is known whole."""
        if PLAIN.issuperset(map(type, args)) and (not kwargs or PLAIN.issuperset(map(type, kwargs.values()))):
            data: bytes | None = dumps((args, kwargs))
            if data is not None and len(data) < SHARED_BYTES:
                return data
        known = memo.blobs if memo is not None else {}
        if not any(id(value) in known or isinstance(value, Referable) for value in (*args, *kwargs.values())):
            data = dumps_small((args, kwargs), Apart(SHARED_BYTES))
            if data is not None and (len(data) < SHARED_BYTES or not self._backend.blobs):
                return data
        replace: dict[int, Reference] = {}
        for value in (*args, *kwargs.values()) if self._backend.blobs else ():
            if type(value) in _SMALL or isinstance(value, Referable):
                continue
            if id(value) not in known:
                known[id(value)] = self._put_aside(value, memo)
            if (blob := known[id(value)]) is not None:
                replace[id(value)] = blob
        data, references = dumps_referring((args, kwargs), self._backend, replace)
        return (data, references) if references else data

    def pack_rows(self, columns: Sequence[Sequence[Any]], names: Sequence[str], plain: bool, memo: Memo) -> bytes:
        """Calls side by side, given by column; the last `len(names)` columns are keyword arguments."""
        if plain:
            known = memo.blobs and any(memo.blobs.get(id(value)) for column in columns for value in column)
            if not known and (data := self._pack_plain(columns, names, memo)) is not None:
                return data
        positional, rows = len(columns) - len(names), zip(*columns, strict=True)
        calls: Any = ((row, _NO_NAMES) for row in rows) if not names else (
            (row[:positional], dict(zip(names, row[positional:], strict=True))) for row in rows
        )  # fmt: skip
        if not memo.mixed:
            calls = list(calls)
            if (data := self._pack_small(calls)) is not None:
                return data
            memo.mixed = True
        return pack_calls([self._pack_one(call, memo) for call in calls])

    def _pack_plain(self, columns: Sequence[Sequence[Any]], names: Sequence[str], memo: Memo) -> bytes | None:
        """Without a pickle; None where something is worth to be put aside."""
        data = encode_columns(columns, names, True)
        if len(data) < SHARED_BYTES or not self._backend.blobs or memo.by_name:
            return data
        return None if any(self._worth(column, memo, len(data)) for column in columns) else data

    def _worth(self, column: Sequence[Any], memo: Memo, total: int) -> bool:
        for value in column:
            size = 0
            if type(value) in _SMALL or (total < self._large and not memo.often(value)):
                continue
            if type(value) in _TEXT:
                size = len(value)
            elif type(value) in _NESTED and value:
                size = len(encode_columns([[value]], (), True))
            if size >= SHARED_BYTES and (size >= self._large or memo.often(value)):
                return True
        return False

    def _pack_small(self, calls: list[tuple[Any, Any]]) -> bytes | None:
        """Where all are small and refer to nothing, the fastest way; else None."""
        pickles = dumps_each(calls)
        if pickles is None or (self._backend.blobs and max(map(len, pickles)) >= SHARED_BYTES):
            return None
        data = encode_pickled(pickles)
        return None if names_by_value(data) else data

    def _pack_one(self, call: tuple[Any, Any], memo: Memo) -> bytes | Call:
        if not memo.blobs:
            small = dumps_small(call, Apart(SHARED_BYTES))
            if small is not None and (len(small) < SHARED_BYTES or not self._backend.blobs):
                return small
        return self.pack(*call, memo)

    def _put_aside(self, value: Any, memo: Memo | None) -> Blob | None:
        """What stands for a large value; None for one that travels with its call."""
        apart = Apart(SHARED_BYTES)
        try:
            pickled = dumps_apart(value, apart)
        except CannotPickle:  # it refers to something, or cannot travel: whoever pickles the whole call sees to it
            return None
        size = len(pickled) + sum(memory.nbytes for memory in apart.buffers)
        if size < SHARED_BYTES:
            return None
        # What a run's calls were given is one object for all of them; what submits were given only looks the same.
        shared = memo is not None and memo.often(value)
        if not shared and size < self._large and (memo is not None or not self._again(pickled, apart)):
            return None
        try:
            return put_object(self.store, pickled, apart, shared)
        except StorageFull:  # the future of the call is to say so: sending it fails in the same way
            return None

    def _again(self, pickled: bytes, apart: Apart) -> bool:
        """Whether one that looked the same was an argument before: then it may be what many calls share."""
        most = max((pickled, *apart.buffers), key=len)
        looks = (len(most), hash(bytes(most[:2048])), hash(bytes(most[-2048:])))
        if looks in self._seen:
            return True
        if len(self._seen) >= _SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[looks] = None
        return False

    def store(self, key: str, content: bytes | memoryview) -> None:
        """Put content into the blob store, unless this session has just done so."""
        if key not in self._stored:
            view = memoryview(content)
            put_parts(self._backend, self._signer, key, len(view), lambda at, length: bytes(view[at : at + length]))
            self._stored.add(key)


def pack_calls(calls: Sequence[bytes | Call]) -> bytes:
    """Packed calls as the payload of a frame."""
    if all(type(call) is bytes for call in calls):
        return encode_pickled(list(calls))  # type: ignore[arg-type]
    return encode_referring(calls)
