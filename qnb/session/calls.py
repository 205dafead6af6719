"""A call on its way out: which function, and its arguments as bytes; and what workers tell of the function's needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from qnb.codec.code import is_reference
from qnb.codec.environment import tell
from qnb.codec.functions import Named, named
from qnb.codec.payloads import is_plain
from qnb.codec.plain import are_plain, encode_call, is_encoded, join_calls, not_plain
from qnb.codec.references import Call
from qnb.errors import OtherVersions
from qnb.message import Function, Outcomes
from qnb.session.aside import SHARED_BYTES, Aside, pack_calls

log = logging.getLogger(__name__)


def as_function(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function, or the one that a name stands for."""
    return named(function) if isinstance(function, str) else function


def pack_call(
    aside: Aside, shipped: Function, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes | Call:
    """The arguments of one call: without a pickle where the function is imported by its name and they are plain."""
    call = pack_plain(shipped, function, args, kwargs)
    if call is not None and (len(call) < SHARED_BYTES or isinstance(function, Named)):
        return call
    return aside.pack(args, kwargs)


def pack_plain(shipped: Function, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    """The same without a pickle; None where there has to be one. CannotPickle where there may be none."""
    if not is_reference(shipped.code):
        return None
    call = encode_call(args, kwargs)
    if call is None and isinstance(function, Named):
        raise not_plain(args, kwargs)
    return call


def travels_plain(shipped: Function, columns: Sequence[Sequence[Any]]) -> bool:
    """Whether the arguments of many calls, by column, need no pickle."""
    return are_plain(columns) if is_reference(shipped.code) else all(map(is_plain, columns))


def pack_frames(calls: list[bytes | Call]) -> list[tuple[int, bytes]]:
    """Calls that `pack_call` made as payloads: (how many, payload)."""
    found: list[tuple[int, bytes]] = []
    for encoded, run in groupby(calls, is_encoded):
        some: list[Any] = list(run)
        found += join_calls(some) if encoded else [(len(some), pack_calls(some))]
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
