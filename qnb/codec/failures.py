"""Exceptions across processes: the user's own class, and a traceback that shows the cell's own lines."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any

from qnb.codec.output import sound
from qnb.codec.pickling import dumps_home, loads
from qnb.errors import RemoteError, ShippingError
from qnb.message import Failure

_TRACEBACK_CHARS = 65536
_FRAMES = 200
Keep = Callable[[dict[str, Any]], dict[str, Any]]  # which attributes of an exception travel
_BARE = (object, BaseException, Exception)
_LEFT_OUT = {(AttributeError, "obj")}  # any object of the task, however large


def pack_failure(error: BaseException, skip: int = 0, as_text: bool = False) -> Failure:
    """What there is to tell of an exception; the first `skip` frames are the worker's own and left out. `as_text`: its
    class does not travel, for that takes a pickle."""
    tb = error.__traceback__
    for _ in range(skip):
        tb = tb.tb_next if tb is not None else None
    while tb is not None and tb.tb_frame.f_locals.get("__tracebackhide__"):
        tb = tb.tb_next
    lines = traceback.format_exception(type(error), error, tb)
    payload = None if as_text else _payload(error, tb, dict) or _payload(error, tb, _picklable)
    text = "".join(lines)
    if len(text) > _TRACEBACK_CHARS:
        text = text[:1000] + "\n  …\n" + text[1000 - _TRACEBACK_CHARS :]
    return Failure(sound(_type_name(error)), _message(error), sound(text), payload)


def _payload(error: BaseException, tb: TracebackType | None, keep: Keep) -> bytes | None:
    try:
        payload = dumps_home(_parts(error, tb, set(), keep))
        _rebuild(loads(payload))
    except Exception:  # an exception that cannot be opened again is better told as text
        return None
    return payload


def unpack_failure(failure: Failure) -> BaseException:
    """The exception of a Failure, ready to be raised: its traceback is the remote one."""
    error = _unpack(failure)
    if failure.root is not None:
        error.__cause__ = _unpack(failure.root)
    return error


def _unpack(failure: Failure) -> BaseException:
    if failure.payload is not None:
        try:
            return _rebuild(loads(failure.payload))
        except Exception as error:  # its class cannot be opened here: say so beside what happened there
            note = f"its own class {failure.type_name} cannot be opened here: {error}"
    else:
        note = f"its own class {failure.type_name} cannot be pickled, or its worker does not (--only)"
    stand_in = RemoteError(f"{failure.type_name}: {failure.message}", failure.type_name, failure.traceback)
    stand_in.add_note(note)
    if failure.traceback:
        stand_in.add_note("\nIn the worker:\n" + failure.traceback.rstrip())
    return stand_in


def own_failure(error: BaseException) -> Failure:
    """A Failure of qnb's own making (lost, timed out), which has no traceback."""
    payload = dumps_home(_parts(error, None, set(), dict))
    return Failure(_type_name(error), _message(error), f"{_type_name(error)}: {_message(error)}\n", payload)


def told(error: BaseException) -> str:
    """In a line: its class and its message."""
    return sound(f"{type(error).__name__}: {_message(error)}")


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    try:
        return sound(str(error))
    except Exception as broken:
        return sound(f"<its message cannot be shown: {broken!r}>")


def _parts(error: BaseException, tb: TracebackType | None, seen: set[int], keep: Keep) -> tuple[Any, ...]:
    """(class, args, state, frames of the traceback, cause, context, suppress) with causes nested the same way."""
    seen.add(id(error))
    frames = [
        (frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_code.co_firstlineno, line)
        for frame, line in traceback.walk_tb(tb)
    ]
    state = keep(vars(error) | _builtin_state(error))
    cause, context = error.__cause__, error.__context__
    nested = [
        _parts(other, other.__traceback__, seen, keep) if other is not None and id(other) not in seen else None
        for other in (cause, context)
    ]
    inner = None
    if isinstance(error, BaseExceptionGroup):
        inner = [_parts(other, other.__traceback__, seen, keep) for other in error.exceptions]
    args = error.args if inner is None else error.args[:1]  # the rest is `inner`
    return type(error), args, state, frames, nested[0], nested[1], error.__suppress_context__, inner


def _builtin_state(error: BaseException) -> dict[str, Any]:
    """What built-in exceptions keep beside `args`: the file name of an OSError, the code of a SystemExit, …"""
    state: dict[str, Any] = {}
    for kind in type(error).__mro__:
        if kind.__module__ != "builtins" or kind in _BARE or issubclass(kind, BaseExceptionGroup):
            continue
        for name, member in vars(kind).items():
            if isinstance(member, (MemberDescriptorType, GetSetDescriptorType)) and (kind, name) not in _LEFT_OUT:
                value = getattr(error, name, None)
                if value is not None:
                    state[name] = value
    return state


def _picklable(state: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in state.items():
        try:
            loads(dumps_home(value))
        except ShippingError:
            continue
        kept[name] = value
    return kept


def _rebuild(parts: tuple[Any, ...]) -> BaseException:
    """An exception without its __init__, which may want other arguments than `args`."""
    kind, args, state, frames, cause, context, suppress, inner = parts
    if inner is not None:
        error: BaseException = kind(args[0], [_rebuild(other) for other in inner])
    else:
        error = kind.__new__(kind, *args)
        error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    error.__cause__ = _rebuild(cause) if cause is not None else None
    error.__context__ = _rebuild(context) if context is not None else None
    error.__suppress_context__ = suppress
    return error.with_traceback(_traceback(frames))


class _Stop(Exception):
    """Raised to get hold of a frame."""


def _traceback(frames: list[tuple[str, str, int, int]]) -> TracebackType | None:
    """A traceback of (file, function, first line of the function, line) frames that were somewhere else.

    Python makes frames by running code only, so that each stands on an empty function which raises at its line.
    """
    found: TracebackType | None = None
    for filename, name, first, line in reversed(frames[-_FRAMES:]):
        code = compile("\n" * max(0, line - first) + "raise stop", filename, "exec")
        code = code.replace(co_name=name.rpartition(".")[2], co_qualname=name, co_firstlineno=first)
        try:
            exec(code, {"stop": _Stop, "__name__": name, "__file__": filename})
        except _Stop as stop:
            made = stop.__traceback__.tb_next if stop.__traceback__ is not None else None
            if made is not None:
                found = TracebackType(found, made.tb_frame, made.tb_lasti, line)
    return found
