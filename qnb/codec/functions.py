"""Functions by value: pickled once a version, named by the hash of the pickle.

A version is what the function would do now: its code, defaults, closure, and the globals it uses. `Shipper.ship` looks
whether any of these is another object than when it last pickled, which costs a microsecond; where one can change
without becoming another object (a list, a DataFrame) it pickles again, and the hash tells whether anything changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any

from qnb.codec.pickling import by_value, dumps_by_value, loads
from qnb.errors import CannotUnpickle
from qnb.message import Function

_SOURCE_BYTES = 65536
_CACHED = 512
_MISSING = object()
_ANY_PYTHON = (0, 0)
_ATOMS = (int, float, complex, str, bytes, bool, type(None))


class Shipper:
    """Turns functions into Function references; owned by one Session."""

    def __init__(self) -> None:
        self._cache: dict[int, tuple[Any, Function, _Checks]] = {}

    def ship(self, function: Callable[..., Any]) -> Function:
        """The current version of a function; CannotPickle names the variable at fault."""
        cached = self._cache.get(id(function))
        if cached is not None and cached[0] is function and cached[2].hold():
            return cached[1]
        shipped = pack(function)
        checks = _Checks()
        if checks.add(function):
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[id(function)] = (function, shipped, checks)
        return shipped


def pack(function: Callable[..., Any]) -> Function:
    """Pickle a function together with the source lines its tracebacks will show."""
    code = _python(function) + dumps_by_value((function, _sources(function)))
    return Function(hashlib.sha256(code).digest()[:16], name_of(function), code, is_coroutine(function))


def _python(function: Any) -> bytes:
    """Byte code is good for one minor version; a function that is imported there is good for all."""
    inner = plain(function)
    if isinstance(inner, FunctionType) and not _importable(inner):
        return bytes(sys.version_info[:2])
    return bytes(_ANY_PYTHON)


def unpack(name: str, code: bytes) -> Callable[..., Any]:
    """The function of a pickle made by `pack`; its source lines become known to tracebacks here."""
    if len(code) < 2:
        raise CannotUnpickle(f"the function {name} has come without its code")
    made_by, here = tuple(code[:2]), sys.version_info[:2]
    if made_by not in (_ANY_PYTHON, here):
        raise CannotUnpickle(
            f"the function {name} was shipped by Python {made_by[0]}.{made_by[1]}, "
            f"this worker runs {here[0]}.{here[1]}: start the worker with the notebook's Python version"
        )
    try:
        opened = loads(code[2:])
    except CannotUnpickle as error:
        raise CannotUnpickle(f"the function {name} {error}") from error.__cause__
    function, sources = opened if isinstance(opened, tuple) and len(opened) == 2 else (None, None)
    if not callable(function) or not isinstance(sources, dict):
        raise CannotUnpickle(f"the function {name} has come as something that cannot be called")
    for filename, text in sources.items():
        # Without a modification time, linecache takes the entry as it is and never looks for a file.
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return function  # type: ignore[no-any-return]


def name_of(function: Any) -> str:
    """What a function is called on screen."""
    function = plain(function)
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def plain(function: Any) -> Any:
    """The function inside partials and bound methods."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    return getattr(function, "__func__", function)


def is_coroutine(function: Any) -> bool:
    """Whether calling it gives a coroutine."""
    inner = plain(function)
    if not inspect.isroutine(inner) and callable(inner):
        inner = type(inner).__call__
    return inspect.iscoroutinefunction(inner)


def parameter_names(function: Any, positional: int) -> list[str]:
    """Names for the first `positional` arguments of a call, for the columns of a table."""
    names: list[str] = []
    try:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}{i}" for i in range(positional - len(names))]
    except (ValueError, TypeError):
        names = []  # some builtins have no signature
    names += [f"arg{i}" for i in range(len(names), positional)]
    return names[:positional]


def source_of(function: Any) -> str:
    """The text of a function as it was typed; empty where there is none."""
    try:
        return inspect.getsource(plain(inspect.unwrap(plain(function))))[:_SOURCE_BYTES]
    except (OSError, TypeError, ValueError):
        return ""


def _sources(function: Any) -> dict[str, str]:
    """Text by file name of what travels by value: the function and those that it uses."""
    sources: dict[str, str] = {}
    seen: set[int] = set()
    waiting, room = [function], _SOURCE_BYTES
    while waiting:
        value = plain(inspect.unwrap(waiting.pop(), stop=lambda f: id(f) in seen))
        if id(value) in seen or not by_value(getattr(value, "__module__", None) or ""):
            continue
        seen.add(id(value))
        if isinstance(value, type):
            waiting += [member for member in vars(value).values() if callable(member)]
        if not isinstance(value, FunctionType):
            continue
        name = value.__code__.co_filename
        if name not in sources:
            text = "".join(linecache.getlines(name))
            if 0 < len(text) <= room:
                sources[name] = text
                room -= len(text)
        waiting += _used(value)
    return sources


def _used(function: FunctionType) -> list[Any]:
    """The callables among a function's globals and enclosing variables."""
    found = [function.__globals__.get(name) for name in _global_names(function.__code__)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            found.append(cell.cell_contents)
    return [value for value in found if callable(value)]


class _Checks:
    """What has to be the same object as before for a pickle to be still right."""

    __slots__ = ("_cells", "_functions", "_globals", "_seen")

    def __init__(self) -> None:
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._functions: list[tuple[Any, ...]] = []
        self._seen: set[int] = set()

    def hold(self) -> bool:
        for namespace, name, value in self._globals:
            if namespace.get(name, _MISSING) is not value:
                return False
        try:
            for cell, value in self._cells:
                if cell.cell_contents is not value:
                    return False
        except ValueError:  # a variable that was deleted
            return False
        for function, code, defaults, keywords in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
        return True

    def add(self, value: Any) -> bool:
        """Note what to look at; False when `value` may change without becoming another object."""
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return True
        if isinstance(value, ModuleType):
            return not by_value(value.__name__)
        if isinstance(value, BuiltinFunctionType):
            return isinstance(value.__self__, (ModuleType, type(None)))  # not the append of some list
        if isinstance(value, (tuple, frozenset)):
            return all(self.add(item) for item in value)
        if isinstance(value, type):
            return not by_value(value.__module__)
        if not isinstance(value, FunctionType):
            return False
        if _importable(value):
            return True
        self._seen.add(id(value))
        return self._add_function(value)

    def _add_function(self, function: FunctionType) -> bool:
        if function.__dict__ or function.__kwdefaults__ or not all(map(self.add, function.__defaults__ or ())):
            return False
        self._functions.append((function, function.__code__, function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                return False  # not assigned yet
            self._cells.append((cell, content))
            if not self.add(content):
                return False
        namespace = function.__globals__
        for name in _global_names(function.__code__):
            value = namespace.get(name, _MISSING)
            self._globals.append((namespace, name, value))
            if value is not _MISSING and not self.add(value):
                return False
        return True


def _global_names(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= _global_names(constant)
    return names


def _importable(function: FunctionType) -> bool:
    if by_value(function.__module__ or "") or function.__module__ not in sys.modules:
        return False
    found: Any = sys.modules[function.__module__]
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function
