"""Calls and results as JSON knows them, which travel without a pickle: to and from functions that are imported there.

Lists and dicts with text as keys may be nested; whatever else msgpack would change on the way (a tuple, a subclass, a
set) is left to pickle, or refused where none is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from qnb.codec.payloads import PLAIN, decode_calls, is_plain
from qnb.codec.pickling import dumps
from qnb.codec.references import REFERRING
from qnb.errors import CannotPickle

_DEPTH = 50
# What a call without arguments travels as: known by its bytes, and so never opened where no pickle is.
NO_ARGUMENTS = dumps(((), {}))
_encode = msgspec.msgpack.Encoder().encode
_call = msgspec.msgpack.Decoder(tuple[int, list[str], list[list[msgspec.Raw]]]).decode
# How a call of one positional argument begins: its value follows an array of one.
_OF_ONE = b"c" + _encode((1, [], [[None]]))[:-1]
_REFUSED = (OverflowError, UnicodeEncodeError, msgspec.MsgspecError)


def is_nested_plain(value: Any, depth: int = _DEPTH) -> bool:
    """Whether it comes back from msgpack as it went in."""
    kind = type(value)
    if kind in PLAIN:
        return True
    if depth == 0 or kind not in (list, dict):
        return False
    if kind is list:
        return all(is_nested_plain(item, depth - 1) for item in value)
    return all(type(key) is str and is_nested_plain(item, depth - 1) for key, item in value.items())


def are_plain(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether all values of these columns do."""
    return all(is_plain(column) or all(map(is_nested_plain, column)) for column in columns)


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    """One call as a payload of kind `c`, or NO_ARGUMENTS; None when it has something that is not plain."""
    try:
        if len(args) == 1 and not kwargs:
            return _OF_ONE + _encode(args[0]) if is_nested_plain(args[0]) else None
        values = [*args, *kwargs.values()]
        if not values:
            return NO_ARGUMENTS  # columns of no values would not tell how many calls there are
        if not all(map(is_nested_plain, values)):
            return None
        return b"c" + _encode((len(args), list(kwargs), [[value] for value in values]))
    except _REFUSED:
        return None


def is_encoded(call: Any) -> bool:
    """Whether a call was made by `encode_call`; a pickle begins otherwise."""
    return bool(call[:1] == b"c")


def join_calls(calls: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Calls that `encode_call` made, those side by side that have the same arguments: (how many, payload)."""
    if all(call.startswith(_OF_ONE) for call in calls):  # nothing has to be opened: the value is what follows
        values = [call[len(_OF_ONE) :] for call in calls]
        return [(len(calls), b"".join([_OF_ONE[:-1], b"\xdd", len(calls).to_bytes(4, "big"), *values]))]
    found: list[tuple[tuple[int, list[str]], list[list[msgspec.Raw]], int]] = []
    for call in calls:
        positional, names, columns = _call(memoryview(call)[1:])
        if found and found[-1][0] == (positional, names):
            shape, before, count = found[-1]
            for column, more in zip(before, columns, strict=True):
                column += more
            found[-1] = (shape, before, count + 1)
        else:
            found.append(((positional, names), columns, 1))
    return [(count, b"c" + _encode((*shape, columns))) for shape, columns, count in found]


def has_no_pickle(payload: bytes) -> bool:
    """Whether the calls of a payload can be read without opening a pickle."""
    if payload[:1] == REFERRING:
        return False
    pickled, calls = decode_calls(payload)
    return not pickled or all(call == NO_ARGUMENTS for call in calls)


def encode_plain_values(values: list[Any]) -> bytes | None:
    """Results without a pickle; None when one is not plain."""
    if not all(map(is_nested_plain, values)):
        return None
    try:
        return b"m" + _encode(values)
    except _REFUSED:
        return None


def require_plain(columns: Sequence[Sequence[Any]], names: Sequence[str] = ()) -> None:
    """CannotPickle where the arguments of one of many calls, by column, are not plain."""
    if are_plain(columns):
        return
    for row in zip(*columns, strict=True):
        if not all(map(is_nested_plain, row)):
            raise not_plain((), dict(zip(names, row, strict=True))) if names else not_plain(row, {})


def not_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> CannotPickle:
    """Says which argument cannot travel to a function that is called by its name."""
    named = [*((f"argument {i}", value) for i, value in enumerate(args)), *kwargs.items()]
    for name, value in named:
        if not is_nested_plain(value):
            return CannotPickle(
                f"{name} is a {type(value).__name__}: a function that is called by its name takes what JSON has "
                "(None, bool, int, float, str, lists, dicts with text as keys) and bytes"
            )
    return CannotPickle("an argument has an integer of over 64 bits, or text that is no UTF-8")
