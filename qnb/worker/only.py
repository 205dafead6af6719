"""A worker that runs the functions of some modules alone: what it takes, and what it finds in them.

`look` is the parent's part, before a frame is dealt: the form of the function and of the arguments, nothing of which is
opened. `find_function` is the lane's: the module is imported there, and has to have made the function itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from qnb.codec.code import Code, is_reference, read
from qnb.codec.functions import as_function
from qnb.codec.plain import has_no_pickle
from qnb.errors import CannotUnpickle, MessageError, Refused
from qnb.message import Frame

NO_PICKLES = "this worker runs registered functions alone (--only), and opens no pickles"


def look(frame: Frame, only: Sequence[str]) -> None:
    """Refused unless the frame calls a function of these modules by its name, with arguments that need no pickle."""
    name, modules = frame.function.name, ", ".join(only)
    if not is_reference(frame.function.code):
        raise Refused(
            f"{name} was shipped, and this worker runs functions of {modules} alone (--only): put it into one of these "
            "modules, or send it to a queue that another worker serves"
        )
    code = read(frame.function.code or b"")
    if code.archives:
        raise Refused(
            f"{name} comes with modules shipped by session.ship, and this worker takes none (--only): submit it by its "
            f"name, as in session.submit('{code.module}.{code.name}', …)"
        )
    _allow(code, only)
    if not _readable(frame.args):
        raise Refused(
            f"a call of {name} has an argument that JSON has no form for, and this worker opens no pickles (--only): "
            "give None, bool, int, float, str, lists, dicts with text as keys, or bytes"
        )


def _readable(args: bytes) -> bool:
    try:
        return has_no_pickle(args)
    except MessageError:
        return False


def _allow(code: Code, only: Sequence[str]) -> None:
    if code.module not in only:
        raise Refused(
            f"{code.module}.{code.name} is of another module than {', '.join(only)}, which are all that this worker "
            "runs (--only)"
        )
    if not code.name.isidentifier() or code.name.startswith("_"):
        raise Refused(f"{code.module}.{code.name} is no public function of its module, and is not run (--only)")


def find_function(code: bytes, only: Sequence[str]) -> Callable[..., Any]:
    """The function of a reference; CannotUnpickle when the module has none of this name of its own."""
    if not is_reference(code):
        raise CannotUnpickle(f"was shipped: {NO_PICKLES}")
    parts = read(code)
    try:
        _allow(parts, only)
    except Refused as error:
        raise CannotUnpickle(str(error)) from error
    try:
        found: Any = getattr(importlib.import_module(parts.module), parts.name, None)
    except Exception as error:
        raise CannotUnpickle(
            f"{parts.module} cannot be imported by this worker: {type(error).__name__}: {error}"
        ) from error
    # What the module has only imported (os.system, as it were) is nobody's to call.
    if isinstance(found, type) or not callable(found) or getattr(found, "__module__", None) != parts.module:
        raise CannotUnpickle(f"{parts.module} has no function {parts.name!r} of its own to be called by name")
    return as_function(found, parts.is_async)
