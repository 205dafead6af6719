"""pickle where it is enough, cloudpickle where it is not, and one rule for classes on the way home.

`dumps` ships what lives in `__main__` (a notebook) by value. `dumps_home` is its counterpart in a worker: a class that
came from a notebook goes back by its tracker id, so that what arrives is an instance of the notebook's own class.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any

from qnb.errors import CannotPickle, CannotUnpickle

_BY_VALUE = {b"__main__"}
_BY_REFERENCE: set[str] = set()  # top-level modules whose files are shipped
_DYNAMIC = "<dynamic-code>"  # what cloudpickle calls the file of all code, from 3.1.1 on
ARRAY_BYTES = 1 << 16  # from this size on memory is left out of a pickle that goes aside
_refused: str | None = None  # why this process opens no pickles


def ship_module(module: Any) -> None:
    """From now on functions and classes of this module travel by value."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    _BY_VALUE.add(module.__name__.encode())


def ship_by_reference(modules: set[str]) -> None:
    """Functions and classes of these travel by their names, even those that are no longer what the module has: the
    module's files are shipped, and what runs is what they say."""
    _BY_REFERENCE.update(modules)
    _BY_VALUE.difference_update(name.encode() for name in modules)


def by_reference(value: Any) -> bool:
    """Whether a function or class is of a module whose files are shipped, and can be found there by its name."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or module.partition(".")[0] not in _BY_REFERENCE:
        return False
    return "<" not in getattr(value, "__qualname__", "<")


def refuse_pickles(why: str) -> None:
    """From now on this process opens none."""
    global _refused
    _refused = why


def by_value(module_name: str) -> bool:
    """Whether what lives in this module travels by value."""
    return module_name.encode() in _BY_VALUE


def dumps(value: Any) -> bytes:
    """Pickle for a worker; CannotPickle names the part at fault."""
    try:
        data = pickle.dumps(value, 5)
    except Exception:
        return dumps_by_value(value)
    return dumps_by_value(value) if names_by_value(data) else data


def dumps_small(value: Any, apart: Apart) -> bytes | None:
    """`dumps` of what plain pickle can do, with no memory in it that is for `apart`, which stays empty; else None."""
    try:
        data = pickle.dumps(value, 5, buffer_callback=apart)
    except Exception:
        apart.buffers.clear()
        return None
    if apart.buffers:
        apart.buffers.clear()
        return None
    return None if names_by_value(data) else data


def dumps_each(values: Iterable[Any]) -> list[bytes] | None:
    """Each by plain pickle, the fastest there is; None where one cannot be, or has memory of a large array in it.

    Whether they name what is to travel by value (`names_by_value`) is for the caller to see, for all in one."""
    apart = Apart(ARRAY_BYTES)
    try:
        pickles = [pickle.dumps(value, 5, buffer_callback=apart) for value in values]
    except Exception:
        return None  # whoever pickles it in another way has the error
    return None if apart.buffers else pickles


class _Within:
    """A file that takes so many bytes, and keeps none."""

    def __init__(self, most: int) -> None:
        self.left = most

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.left -= size
        if self.left < 0:
            raise ValueError("larger than that")
        return size


def is_within(value: Any, most: int) -> bool:
    """Whether plain pickle can do it, in less than so many bytes; of a larger value little more than those is made."""
    file, apart = _Within(most), Apart(4096)
    try:
        pickle.Pickler(file, 5, buffer_callback=apart).dump(value)
    except Exception:
        return False
    return sum(memory.nbytes for memory in apart.buffers) < file.left


def names_by_value(data: bytes) -> bool:
    """Whether a pickle names a module whose functions and classes are to travel by value."""
    for name in _BY_VALUE:  # noqa: SIM110 - once a submit, and a generator takes longer
        if name in data:
            return True
    return False


def dumps_by_value(value: Any) -> bytes:
    """Pickle with cloudpickle, which ships functions and classes of a notebook whole."""
    return _dumps_with(ship_pickler(), value, None)


def dumps_home(value: Any, apart: Apart | None = None) -> bytes:
    """Pickle in a worker, for the session; memory that is to be left out goes to `apart`."""
    try:
        return pickle.dumps(value, 5, buffer_callback=apart)
    except Exception:
        pass  # plain pickle knows no classes of a notebook: the home pickler does, and has the error if there is one
    return _dumps_with(_home_pickler(), value, apart)


def dumps_apart(value: Any, apart: Apart) -> bytes:
    """`dumps`, with the memory that is to be left out in `apart`."""
    try:
        data = pickle.dumps(value, 5, buffer_callback=apart)
        if not names_by_value(data):
            return data
    except Exception:
        pass  # cloudpickle may be able to, and has the error if not
    return _dumps_with(ship_pickler(), value, apart)


class Apart:
    """Memory left out of a pickle (protocol 5): that of arrays and the like, of `least` bytes or more."""

    __slots__ = ("buffers", "least")

    def __init__(self, least: int) -> None:
        self.least = least
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        memory = buffer.raw()
        if memory.nbytes < self.least:
            return True
        self.buffers.append(memory)
        return False


def _dumps_with(pickler: Callable[..., Any], value: Any, apart: Apart | None) -> bytes:
    if apart is not None:
        apart.buffers.clear()  # of an attempt before
    buffer = io.BytesIO()
    try:
        pickler(buffer, 5, buffer_callback=apart).dump(value)
    except Exception as error:
        raise CannotPickle(f"cannot pickle {culprit(value)}: {error}") from error
    return buffer.getvalue()


def loads(data: bytes, buffers: Iterable[Any] | None = None) -> Any:
    """Open a pickle whose signature has been checked; CannotUnpickle says what is missing here."""
    if _refused is not None:
        raise CannotUnpickle(f"is not opened here: {_refused}")
    try:
        return pickle.loads(data, buffers=buffers)
    except Exception as error:
        raise unopened(error) from error


def unopened(error: Exception) -> CannotUnpickle:
    """What is told of an error in opening a pickle."""
    if isinstance(error, ModuleNotFoundError):
        return CannotUnpickle(
            f"cannot be opened here: no module {error.name!r} in this Python ({sys.executable}): install it here, "
            "or ship it with session.ship(module)"
        )
    return CannotUnpickle(f"cannot be opened here: {type(error).__name__}: {error}")


_Ship: Any = None


def ship_pickler() -> Any:
    """cloudpickle's pickler, as functions are shipped with."""
    global _Ship
    if _Ship is None:
        import cloudpickle

        class ShipPickler(cloudpickle.Pickler):  # type: ignore[misc]
            def reducer_override(self, obj: Any) -> Any:
                # Which pickle itself, and cloudpickle with it, only knows by name.
                if isinstance(obj, functools._lru_cache_wrapper) and by_value(obj.__module__):
                    return _cached, (obj.cache_parameters(),), obj.__wrapped__, None, None, _set_cached
                if isinstance(obj, CodeType):
                    return _code_of(obj)
                if _BY_REFERENCE and isinstance(obj, (FunctionType, type)) and by_reference(obj):
                    return find, (obj.__module__, obj.__qualname__)
                return super().reducer_override(obj)

        _Ship = ShipPickler
    return _Ship


def _code_of(code: CodeType) -> tuple[Any, ...]:
    """As cloudpickle has it, with the name of the file, by which tracebacks and debuggers find the lines: it puts
    another in its place. A string of its own each time, or equal functions would not have equal pickles."""
    from cloudpickle.cloudpickle import _code_reduce

    make, arguments = _code_reduce(code)
    return make, tuple("".join(list(code.co_filename)) if each == _DYNAMIC else each for each in arguments)


def find(module: str, name: str) -> Any:
    """What a module has under a qualified name; imports it."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _cached(parameters: dict[str, Any]) -> Any:
    """A cache whose function is told later: it may call itself by its name, and then has to be there already."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return call.__dict__["function"](*args, **kwargs)

    return functools.lru_cache(**parameters)(call)


def _set_cached(cache: Any, function: Any) -> None:
    cache.__wrapped__.__dict__["function"] = function
    functools.update_wrapper(cache, function)
    cache.__wrapped__ = function


_Home: Any = None


def _home_pickler() -> Callable[..., Any]:
    global _Home
    if _Home is None:
        import cloudpickle
        from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_CLASS as tracked

        class HomePickler(cloudpickle.Pickler):  # type: ignore[misc]
            def reducer_override(self, obj: Any) -> Any:
                if isinstance(obj, type) and (tracker := tracked.get(obj)) is not None:
                    return known_class, (tracker, cloudpickle.dumps(obj, 5))
                return super().reducer_override(obj)

        _Home = HomePickler
    return _Home  # type: ignore[no-any-return]


def known_class(tracker: str, definition: bytes) -> Any:
    """The class of this process with that tracker id, untouched; made from its definition where there is none."""
    from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_ID as known

    found = known.get(tracker)
    return pickle.loads(definition) if found is None else found


def culprit(value: Any, name: str = "", depth: int = 6) -> str:
    """A phrase that names the innermost part of `value` that cannot be pickled."""
    import cloudpickle

    for label, part in _parts(value, name) if depth else ():
        try:
            cloudpickle.dumps(part, 5)
        except Exception:
            return culprit(part, label, depth - 1)
    kind = type(value).__module__ + "." + type(value).__qualname__
    return f"{name or 'the value'} (a {kind.removeprefix('builtins.')})"


def _parts(value: Any, name: str) -> list[tuple[str, Any]]:
    """The named parts one level down: what a function uses, what a container or an object holds."""
    of = f" of {name}" if name else ""
    code = getattr(value, "__code__", None)
    if code is not None:
        globals_ = value.__globals__
        parts = [(f"the global {n!r}", globals_[n]) for n in _names(code) if n in globals_]
        cells = zip(code.co_freevars, value.__closure__ or (), strict=False)
        return parts + [(f"the enclosing variable {n!r}", c.cell_contents) for n, c in cells]
    if not name and _is_call(value):
        args, kwargs = value
        return [(f"argument {i!r}", v) for i, v in (*enumerate(args), *kwargs.items())]
    if isinstance(value, dict):
        return [(f"item {k!r}{of}", v) for k, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"item {i}{of}", v) for i, v in enumerate(value)]
    if hasattr(value, "__self__") and hasattr(value, "__func__"):
        return [("the object the method is bound to", value.__self__)]
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return [("the partial's function", value.func), ("its arguments", (value.args, value.keywords))]
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict) and not isinstance(value, type):
        return [(f"attribute {k!r}{of}", v) for k, v in state.items()]
    return []


def _is_call(value: Any) -> bool:
    """Whether it is (args, kwargs), which is what is pickled of a call."""
    return type(value) is tuple and [type(part) for part in value] == [tuple, dict]


def _names(code: Any) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names += _names(constant)
    return names
