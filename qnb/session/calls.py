"""A call on its way out: which function, and its arguments as bytes; and what workers tell of the function's needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from qnb.codec.code import is_reference
from qnb.codec.environment import tell
from qnb.codec.functions import Named, named
from qnb.codec.payloads import encode_pickled, is_plain
from qnb.codec.pickling import dumps
from qnb.codec.plain import are_plain, encode_call, is_encoded, join_calls, not_plain
from qnb.errors import OtherVersions
from qnb.message import Function, Outcomes

log = logging.getLogger(__name__)


def as_function(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function, or the one that a name stands for."""
    return named(function) if isinstance(function, str) else function


def pack_call(shipped: Function, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments of one call: without a pickle where the function is imported by its name and they are plain."""
    if is_reference(shipped.code):
        call = encode_call(args, kwargs)
        if call is not None:
            return call
        if isinstance(function, Named):
            raise not_plain(args, kwargs)
    return dumps((args, kwargs))


def travels_plain(shipped: Function, columns: Sequence[Sequence[Any]]) -> bool:
    """Whether the arguments of many calls, by column, need no pickle."""
    return are_plain(columns) if is_reference(shipped.code) else all(map(is_plain, columns))


def pack_frames(calls: list[bytes]) -> list[tuple[int, bytes]]:
    """Calls that `pack_call` made as payloads: (how many, payload)."""
    if not any(map(is_encoded, calls)):
        return [(len(calls), encode_pickled(calls))]
    found: list[tuple[int, bytes]] = []
    start = 0
    while start < len(calls):
        kind, stop = is_encoded(calls[start]), start + 1
        while stop < len(calls) and is_encoded(calls[stop]) == kind:
            stop += 1
        some = calls[start:stop]
        found += join_calls(some) if kind else [(len(some), encode_pickled(some))]
        start = stop
    return found


class Differences:
    """Warns of workers that have other versions of what a function imports: once a version of it and worker."""

    def __init__(self) -> None:
        self._told: set[tuple[bytes, str]] = set()

    def look(self, function: Function, outcomes: Outcomes) -> None:
        """Outcomes have come that tell of some."""
        if (function.hash, outcomes.worker) in self._told:
            return
        self._told.add((function.hash, outcomes.worker))
        text = tell(function.name, outcomes.worker, outcomes.differs)
        try:
            warnings.warn(text, OtherVersions, stacklevel=2)
        except OtherVersions:  # made an error: here, where outcomes come in, it could be caught by nobody
            log.error(text)
