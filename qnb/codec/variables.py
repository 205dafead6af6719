"""Variables of a notebook as bytes: by name, each with its size, and what they share only once."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from qnb.codec.pickling import _home_pickler, culprit, ship_pickler
from qnb.errors import CannotPickle, CannotUnpickle


def pack_variables(variables: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """For a worker: the bytes, and how many of them each variable takes. CannotPickle names the one at fault."""
    return _pack(variables, lambda buffer: ship_pickler()(buffer, 5))


def open_variables(data: bytes) -> dict[str, Any]:
    """The variables of bytes whose signature has been checked; CannotUnpickle names the one at fault."""
    unpickler = pickle.Unpickler(io.BytesIO(data))
    found: dict[str, Any] = {}
    for name in unpickler.load():
        try:
            found[name] = unpickler.load()
        except Exception as error:
            raise CannotUnpickle(f"the variable {name!r} cannot be opened here: {error}") from error
    return found


def _pack(variables: Mapping[str, Any], make: Callable[[io.BytesIO], Any]) -> tuple[bytes, dict[str, int]]:
    buffer = io.BytesIO()
    pickler, sizes = make(buffer), {}
    pickler.dump(list(variables))
    for name, value in variables.items():
        begun = buffer.tell()
        try:
            pickler.dump(value)  # with the memory of those before it
        except Exception as error:
            at = culprit(value)
            inside = "" if at.startswith("the value") else f", because of {at}"
            what = f"the variable {name!r} (a {type(value).__qualname__}) cannot be pickled"
            raise Unsent(name, f"{what}{inside}: {error}") from error
        sizes[name] = buffer.tell() - begun
    return buffer.getvalue(), sizes


class Unsent(CannotPickle):
    """A variable that cannot travel."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Variables(dict[str, Any]):
    """Variables on their way home. `missing` has those that cannot travel, and why: the others come all the same."""

    missing: dict[str, str]

    def __init__(self, values: Mapping[str, Any], missing: Mapping[str, str] | None = None) -> None:
        super().__init__(values)
        self.missing = dict(missing or {})

    def __reduce__(self) -> Any:
        kept, missing = dict(self), dict(self.missing)
        while True:
            try:
                return _opened, (_pack(kept, lambda buffer: _home_pickler()(buffer))[0], missing)
            except Unsent as error:
                del kept[error.name]
                missing[error.name] = str(error)


def _opened(data: bytes, missing: dict[str, str]) -> Variables:
    return Variables(open_variables(data), missing)
