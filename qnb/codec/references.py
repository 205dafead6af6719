"""What a call refers to instead of holding it: values of other calls, and what was put aside in the blob store.

Payload kind b"r": msgpack [[pickle, [reference, …]], …]. In the pickle stands a number where a reference is meant. Of
values, the pickle is nil where the value itself was put aside, and describes it where it is to stay there (kept.py).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from qnb.codec.pickling import culprit, dumps_each, names_by_value, ship_pickler, unopened
from qnb.errors import BadMessage, CannotPickle, QnbError
from qnb.message import UNREADABLE, Blob, ValueOf

REFERRING = b"r"
Reference = ValueOf | Blob
Call = tuple[bytes, list[Reference]]
MOST_VALUES = 10_000_000  # that one call refers to
_encode = msgspec.msgpack.Encoder().encode
_calls = msgspec.msgpack.Decoder(list[tuple[bytes, list[Reference]]])
_values = msgspec.msgpack.Decoder(list[tuple[bytes | None, list[Blob]]])
_entry = msgspec.msgpack.Decoder(tuple[bytes | None, list[Blob]])


class Referable:
    """What travels as a reference when it is an argument, alone or nested; nowhere else can it travel at all."""

    __slots__ = ()

    def reference(self, backend: Any) -> Reference | None:
        """What stands for it in a call of a session with this backend; None where its value is to travel instead."""
        raise CannotPickle(f"{self!r} cannot travel")

    def value(self) -> Any:
        """That value."""
        raise CannotPickle(f"{self!r} cannot travel")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise CannotPickle(
            f"{self!r} can travel as an argument of a call, and not inside a function, a partial or another object: "
            "give it to submit or map"
        )


class _Refers:
    """A pickler that puts numbers where references are meant."""

    backend: Any
    references: list[Reference]
    replace: Mapping[int, Reference]
    numbers: dict[int, tuple[int, Any]]  # by id, which another object would have if this one did not stay alive

    def persistent_id(self, value: Any) -> int | None:
        if isinstance(value, Referable):
            found = value.reference(self.backend)
        else:
            found = self.replace.get(id(value)) if self.replace else None
        if found is None:
            return None
        known = self.numbers.get(id(value))
        if known is None:
            known = self.numbers[id(value)] = len(self.references), value
            self.references.append(found)
        return known[0]

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Referable):
            return _same, (value.value(),)
        reduce = getattr(super(), "reducer_override", None)
        return NotImplemented if reduce is None else reduce(value)


def _same(value: Any) -> Any:
    return value


class _PlainPickler(_Refers, pickle.Pickler):
    pass


_Ship: Any = None


def _ship() -> Any:
    global _Ship
    if _Ship is None:

        class ShipPickler(_Refers, ship_pickler()):  # type: ignore[misc]
            pass

        _Ship = ShipPickler
    return _Ship


def dumps_referring(value: Any, backend: Any, replace: Mapping[int, Reference] = MappingProxyType({})) -> Call:
    """Pickle a value for a session with this backend, and name what it refers to.

    `replace`: what stands for the objects with these ids.
    """
    # Most refer to nothing: what may refer cannot be pickled plainly, and to ask of each object takes far longer.
    plain = None if replace else dumps_each([value])
    if plain is not None and not names_by_value(plain[0]):
        return plain[0], []
    try:
        data, references = _dump(_PlainPickler, value, backend, replace)
        if not names_by_value(data):
            return data, references
    except QnbError:
        raise
    except Exception:
        pass  # what plain pickle cannot do cloudpickle may, and has the error if not
    try:
        return _dump(_ship(), value, backend, replace)
    except QnbError:
        raise
    except Exception as error:
        raise CannotPickle(f"cannot pickle {culprit(value)}: {error}") from error


def _dump(kind: Any, value: Any, backend: Any, replace: Mapping[int, Reference]) -> Call:
    buffer = io.BytesIO()
    pickler = kind(buffer, 5)
    pickler.backend, pickler.references, pickler.replace, pickler.numbers = backend, [], replace, {}
    pickler.dump(value)
    return buffer.getvalue(), pickler.references


class _Unpickler(pickle.Unpickler):
    values: Sequence[Any]

    def persistent_load(self, number: Any) -> Any:
        return self.values[number]


def loads_referring(data: bytes, values: Sequence[Any]) -> Any:
    """Open such a pickle, with what its references stand for; CannotUnpickle says what is missing here."""

    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.values = values
    try:
        return unpickler.load()
    except Exception as error:
        raise unopened(error) from error


def encode_referring(calls: Sequence[bytes | Call]) -> bytes:
    """Arguments of calls of which some refer to something."""
    return REFERRING + _encode([(call, ()) if isinstance(call, bytes) else call for call in calls])


def decode_referring(data: bytes) -> list[Call]:
    """The calls of such a payload; BadMessage when it is none. No pickle is opened."""
    try:
        calls = _calls.decode(memoryview(data)[1:])
    except UNREADABLE as error:
        raise BadMessage(f"not arguments of this version of qnb: {error}") from error
    for _, references in calls:
        if sum(each.count for each in references if isinstance(each, ValueOf)) > MOST_VALUES:
            raise BadMessage(f"a call that refers to more than {MOST_VALUES:,} values")
    return calls


def decode_entries(data: bytes) -> list[tuple[bytes | None, list[Blob]]]:
    """The values of such a payload: pickle, and what was put aside."""
    try:
        return _values.decode(memoryview(data)[1:])
    except UNREADABLE as error:
        raise BadMessage(f"not values of this version of qnb: {error}") from error


def encode_entries(entries: Sequence[tuple[bytes | None, list[Blob]]]) -> bytes:
    """Values of which some were put aside."""
    return REFERRING + _encode(entries)


# One value of a payload of values, apart from the others: a byte that tells the kind, then it.


def split_values(data: bytes, wanted: Sequence[int]) -> dict[int, bytes]:
    """Values at these positions, each by itself. No pickle is opened."""
    if not data:
        return dict.fromkeys(wanted, b"m\xc0")
    kind = data[:1]
    try:
        if kind == b"p":
            pickles = _pickles.decode(memoryview(data)[1:])
            return {at: b"m\xc0" if (each := pickles[at]) is None else b"p" + each for at in wanted}
        raw = _raw.decode(memoryview(data)[1:])
        return {at: kind + bytes(raw[at]) for at in wanted}
    except (*UNREADABLE, IndexError) as error:
        raise BadMessage(f"not values of this version of qnb: {error}") from error


_pickles = msgspec.msgpack.Decoder(list[bytes | None])
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
_any = msgspec.msgpack.Decoder()


def blobs_of(value: bytes) -> list[Blob]:
    """What was put aside of a value that stands by itself."""
    if value[:1] != REFERRING:
        return []
    try:
        return _entry.decode(memoryview(value)[1:])[1]
    except UNREADABLE as error:
        raise BadMessage(f"not a value of this version of qnb: {error}") from error


def load_value(value: bytes, loads: Callable[[bytes], Any], fetch: Callable[[Blob], Any]) -> Any:
    """The object of a value that stands by itself: one that was put aside is fetched."""
    kind, rest = value[:1], memoryview(value)[1:]
    if kind == b"m":
        return _any.decode(rest)
    if kind == b"p":
        return loads(value[1:])
    pickled, blobs = _entry.decode(rest)
    if blobs:
        return fetch(blobs[0])
    return None if pickled is None else loads(pickled)
