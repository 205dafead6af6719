"""Arguments and results as bytes: plain values as msgpack, everything else a pickle a call.

The first byte tells: b"c" is msgpack [positional, names, columns], for calls whose arguments are all plain
(None, bool, int, float, str, bytes); b"p" is msgpack [pickle of (args, kwargs), …]. Values: b"m" is msgpack [value, …],
b"p" is msgpack [pickle of the value, …]. Where something is
referred to or put aside: b"r", references.py. Plain values can be read in any language, and nothing of them is
unpickled. Either can be cut to a range of calls without opening a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from qnb.codec.pickling import dumps, dumps_home
from qnb.codec.references import REFERRING, decode_entries, decode_referring
from qnb.errors import BackendError, BadMessage, CannotPickle
from qnb.message import UNREADABLE, Blob

PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_pickles = msgspec.msgpack.Decoder(list[msgspec.Raw])
_columns = msgspec.msgpack.Decoder(tuple[int, list[str], list[list[msgspec.Raw]]])
_NO_NAMES: dict[str, Any] = {}
Fetch = Callable[[bytes | None, Blob], Any]  # what was put aside; given what describes it where that is to stay there


def is_plain(values: Sequence[Any]) -> bool:
    """Whether all of them can travel as msgpack."""
    return set(map(type, values)) <= PLAIN


def encode_pickled(calls: list[bytes]) -> bytes:
    """Arguments that were pickled call by call."""
    return b"p" + _encode(calls)


def encode_columns(columns: Sequence[Sequence[Any]], names: Sequence[str], plain: bool) -> bytes:
    """Arguments of many calls, given by column; the last `len(names)` columns are keyword arguments."""
    positional = len(columns) - len(names)
    if plain:
        try:
            return b"c" + _encode((positional, names, columns))
        except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
            pass  # an integer over 64 bits or a lone surrogate: pickle has no such limit
    rows = zip(*columns, strict=True)
    if not names:
        return encode_pickled([dumps((row, _NO_NAMES)) for row in rows])
    return encode_pickled([dumps((row[:positional], dict(zip(names, row[positional:], strict=True)))) for row in rows])


def decode_calls(data: bytes) -> tuple[bool, Iterable[Any]]:
    """Whether the calls are pickled, and the calls: (args, kwargs) each, or the unopened pickle of that."""
    kind, content = _open_calls(data)
    if kind == b"p":
        return True, content
    if kind == REFERRING:
        raise BadMessage("calls that refer to something are read by decode_referring")
    positional, names, columns = content
    rows = zip(*columns, strict=True)
    if not names:
        return False, zip(rows, repeat(_NO_NAMES))
    return False, ((row[:positional], dict(zip(names, row[positional:], strict=True))) for row in rows)


def count_calls(data: bytes) -> int:
    """How many calls the payload has; BadMessage when it is none. Opens nothing of them."""
    try:
        if data[:1] == b"p":
            return len(_pickles.decode(memoryview(data)[1:]))
        if data[:1] == REFERRING:
            return len(decode_referring(data))
        if data[:1] == b"c":
            positional, names, columns = _columns.decode(memoryview(data)[1:])
            _fit(positional, names, columns)
            return len(columns[0])
    except UNREADABLE as error:
        raise BadMessage(f"not a payload of this version of qnb: {error}") from error
    raise BadMessage(f"not a payload of this version of qnb: it starts with {data[:1]!r}")


def slice_calls(data: bytes, start: int, stop: int) -> bytes:
    """The payload of calls start … stop - 1; no pickle is opened."""
    kind, content = _open_calls(data)
    if kind != b"c":
        return kind + _encode(content[start:stop])
    positional, names, columns = content
    return b"c" + _encode((positional, names, [column[start:stop] for column in columns]))


def encode_values(values: list[Any]) -> tuple[bytes, dict[int, CannotPickle]]:
    """Results as bytes, and by position those that cannot be pickled (they travel as None)."""
    if (plain := encode_plain(values)) is not None:
        return plain, {}
    failed: dict[int, CannotPickle] = {}
    pickles: list[bytes | None] = []
    for position, value in enumerate(values):
        try:
            pickles.append(None if value is None else dumps_home(value))
        except CannotPickle as error:
            failed[position] = error
            pickles.append(None)
    return encode_pickles(pickles), failed


def encode_plain(values: list[Any]) -> bytes | None:
    """Results that are all plain; None when they are not."""
    if is_plain(values):
        try:
            return b"m" + _encode(values)
        except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
            pass  # as in encode_columns
    return None


def encode_pickles(pickles: list[bytes | None]) -> bytes:
    """Results that were pickled one by one; None for None."""
    return b"p" + _encode(pickles)


def decode_values(
    data: bytes, loads: Callable[[bytes], Any], fetch: Fetch | None = None
) -> tuple[list[Any], dict[int, Exception]]:
    """Results from bytes, and by position the errors of those that cannot be opened here.

    `fetch` gives what was put aside. The errors that it raises for a backend that is away are raised here, too.
    """
    if not data:
        return [], {}
    kind, content = _open_values(data)
    if kind == b"m":
        return content, {}
    values: list[Any] = []
    failed: dict[int, Exception] = {}
    entries = decode_entries(data) if kind == REFERRING else ((pickled, ()) for pickled in content)
    for position, (pickled, blobs) in enumerate(entries):
        try:
            if blobs and fetch is not None:
                values.append(fetch(pickled, blobs[0]))
            else:
                values.append(None if pickled is None else loads(pickled))
        except BackendError:
            raise
        except Exception as error:
            failed[position] = error
            values.append(None)
    return values, failed


def slice_values(data: bytes, start: int, stop: int) -> bytes:
    """The payload of values start … stop - 1."""
    if not data:
        return data
    kind, content = _open_values(data)
    return kind + _encode(content[start:stop])


def _open(data: bytes) -> tuple[bytes, Any]:
    try:
        kind, content = data[:1], _decode(memoryview(data)[1:])
    except UNREADABLE as error:
        raise BadMessage(f"not a payload of this version of qnb: {error}") from error
    if kind not in (b"c", b"p", b"m", REFERRING) or not isinstance(content, list):
        raise BadMessage(f"not a payload of this version of qnb: it starts with {kind!r}")
    return kind, content


def _open_calls(data: bytes) -> tuple[bytes, Any]:
    kind, content = _open(data)
    if kind in (b"p", REFERRING):
        return kind, content
    if kind != b"c" or len(content) != 3 or not isinstance(content[0], int) or set(map(type, content[1:])) != {list}:
        raise BadMessage(f"not arguments of this version of qnb: they start with {kind!r}")
    positional, names, columns = content
    if not all(isinstance(name, str) for name in names) or not all(isinstance(column, list) for column in columns):
        raise BadMessage("not arguments of this version of qnb: names or columns are something else")
    _fit(positional, names, columns)
    return kind, content


def _open_values(data: bytes) -> tuple[bytes, Any]:
    kind, content = _open(data)
    if kind == b"c":
        raise BadMessage("not values of this version of qnb: they are arguments")
    return kind, content


def _fit(positional: int, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
    """One column an argument, all of one length."""
    fit = positional >= 0 and positional + len(names) == len(columns)
    if not fit or len(set(map(len, columns))) != 1 or len(set(names)) != len(names):
        raise BadMessage("not a payload of this version of qnb: its columns do not fit together")
