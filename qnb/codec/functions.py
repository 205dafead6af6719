"""Functions by value: pickled once a version, named by the hash of the pickle.

A version is what the function would do now: its code, defaults, closure, and the globals it uses. `Shipper.ship` looks
whether any of these is another object than when it last pickled, which costs a microsecond; where one can change
without becoming another object (a list, a DataFrame) it pickles again, and the hash tells whether anything changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any

from qnb.codec.archives import Shipments, activate
from qnb.codec.code import ANY_PYTHON, Archive, Code, python_here, read, write
from qnb.codec.environment import differences, global_names, packages_of, pip_line
from qnb.codec.pickling import by_reference, by_value, dumps_by_value, find, loads
from qnb.errors import BadMessage, CannotUnpickle, ConfigurationError
from qnb.message import Function

_SOURCE_BYTES = 65536
_CACHED = 512
_MISSING = object()
_ATOMS = (int, float, complex, str, bytes, bool, type(None))


class Shipper:
    """Turns functions into Function references; owned by one Session, which ships these modules with them."""

    def __init__(self, shipments: Shipments | None = None) -> None:
        self._cache: dict[int, tuple[Any, Function, _Checks, tuple[Archive, ...]]] = {}
        self._shipments = shipments or Shipments(None)

    def ship(self, function: Callable[..., Any], look: bool = False) -> Function:
        """The current version of a function; CannotPickle names the variable at fault. `look`: see Shipments."""
        archives = self._shipments.current(look)
        cached = self._cache.get(id(function))
        if cached is not None and cached[0] is function and cached[3] is archives and cached[2].hold():
            return cached[1]
        shipped = pack(function, archives)
        checks = _Checks()
        if checks.add(function):
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[id(function)] = (function, shipped, checks, archives)
        return shipped


def pack(function: Callable[..., Any], archives: Sequence[Archive] = ()) -> Function:
    """The bytes that a function is made from where it runs: its name where it can be imported, else a pickle of it
    together with the source lines its tracebacks will show; and what it needs there."""
    is_async, packages = is_coroutine(function), packages_of(_reached(function))
    if isinstance(function, Named):  # of whom nothing is known here: it takes no module along either
        code = Code("", module=function.module, name=function.name)
    elif isinstance(function, FunctionType) and _importable(function):
        code = Code(python_here(), packages, list(archives), function.__module__, function.__qualname__, is_async)
    else:
        pickled = dumps_by_value((function, _sources(function)))
        code = Code(python_here(), packages, list(archives), is_async=is_async, pickle=pickled)
    data = write(_python(function), code)
    return Function(hashlib.sha256(data).digest()[:16], name_of(function), data, is_async)


def _python(function: Any) -> bytes:
    """Byte code is good for one minor version; a function that is imported there is good for all."""
    inner = plain(function)
    if isinstance(inner, FunctionType) and not _importable(inner):
        return bytes(sys.version_info[:2])
    return bytes(ANY_PYTHON)


@dataclass(frozen=True, slots=True)
class Opened:
    """A function where it runs, and what it came with."""

    function: Callable[..., Any]
    archives: Sequence[Archive] = ()
    differs: Sequence[tuple[str, str, str | None]] = ()
    packages: Sequence[tuple[str, str, str]] = ()


def unpack(name: str, code: bytes) -> Callable[..., Any]:
    """The function of what `pack` made; its source lines become known to tracebacks here."""
    return open_function(name, code).function


def open_function(name: str, code: bytes, bring: Callable[[Sequence[Archive]], None] = activate) -> Opened:
    """The same with what it came with: modules that were shipped are here from now on, versions are compared."""
    if len(code) < 3:
        raise CannotUnpickle(f"the function {name} has come without its code")
    made_by, here = tuple(code[:2]), sys.version_info[:2]
    if made_by not in (ANY_PYTHON, here):
        raise CannotUnpickle(
            f"the function {name} was shipped by Python {made_by[0]}.{made_by[1]}, "
            f"this worker runs {here[0]}.{here[1]}: start the worker with the notebook's Python version"
        )
    try:
        parts = read(code)
    except BadMessage as error:
        raise CannotUnpickle(f"the function {name} cannot be opened here: {error}") from error
    bring(parts.archives)
    function = _imported(name, parts) if not parts.pickle else _unpickled(name, parts)
    return Opened(function, parts.archives, differences(parts, by_reference=not parts.pickle), parts.packages)


def _imported(name: str, code: Code) -> Callable[..., Any]:
    try:
        return as_function(find(code.module, code.name), code.is_async)
    except ModuleNotFoundError as error:
        raise CannotUnpickle(_missing(name, code, error)) from error
    except Exception as error:
        raise CannotUnpickle(f"the function {name} cannot be imported here: {type(error).__name__}: {error}") from error


def _missing(name: str, code: Code, error: ModuleNotFoundError) -> str:
    return (
        f"the function {name} cannot be opened here: no module {error.name!r} in this Python ({sys.executable}): "
        f"install it here ({pip_line(code.packages, error.name)}), or ship it with session.ship(module)"
    )


def as_function(found: Any, is_async: bool) -> Callable[..., Any]:
    """What a module has under a name, as a lane calls it: the function of a Task; a coroutine function that its
    caller did not know as one is run to its end."""
    if hasattr(found, "task_options"):
        found = found.function
    if not callable(found):
        raise TypeError(f"{found!r} cannot be called")
    if is_coroutine(found) and not is_async:
        return functools.partial(_run_coroutine, found)
    return found  # type: ignore[no-any-return]


def _run_coroutine(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    import asyncio

    return asyncio.run(function(*args, **kwargs))


def _unpickled(name: str, code: Code) -> Callable[..., Any]:
    try:
        opened = loads(code.pickle)
    except CannotUnpickle as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise CannotUnpickle(_missing(name, code, error.__cause__)) from error.__cause__
        raise CannotUnpickle(f"the function {name} {error}") from error.__cause__
    function, sources = opened if isinstance(opened, tuple) and len(opened) == 2 else (None, None)
    if not callable(function) or not isinstance(sources, dict):
        raise CannotUnpickle(f"the function {name} has come as something that cannot be called")
    for filename, text in sources.items():
        # Without a modification time, linecache takes the entry as it is and never looks for a file.
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return function  # type: ignore[no-any-return]


class Named:
    """A function that workers import and this process need not have: `named("module.function")`."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return as_function(find(self.module, self.name), is_async=True)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<function {self.module}.{self.name}, by its name>"


@functools.lru_cache(512)
def named(text: str) -> Named:
    """The function of a dotted name; ConfigurationError when it is none."""
    module, _, name = text.replace(":", ".").rpartition(".")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigurationError(f"{text!r} names no function: give module.function, as in 'tasks.add'")
    return Named(module, name)


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
    room = _SOURCE_BYTES
    for value in _reached(function):
        name = value.__code__.co_filename
        if name not in sources and by_value(value.__module__ or ""):
            text = "".join(linecache.getlines(name))
            if 0 < len(text) <= room:
                sources[name] = text
                room -= len(text)
    return sources


def _reached(function: Any) -> Iterator[FunctionType]:
    """The function, and what it uses of functions and methods that travel by value."""
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        value = plain(inspect.unwrap(waiting.pop(), stop=lambda f: id(f) in seen))
        first = not seen
        if id(value) in seen or not (first or by_value(getattr(value, "__module__", None) or "")):
            continue
        seen.add(id(value))
        if isinstance(value, type):
            waiting += [member for member in vars(value).values() if callable(member)]
        if not isinstance(value, FunctionType):
            continue
        yield value
        if by_value(value.__module__ or ""):
            waiting += _used(value)


def _used(function: FunctionType) -> list[Any]:
    """The callables among a function's globals and enclosing variables."""
    found = [function.__globals__.get(name) for name in global_names(function.__code__)]
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
        if isinstance(value, Named):
            return True
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
        for name in global_names(function.__code__):
            value = namespace.get(name, _MISSING)
            self._globals.append((namespace, name, value))
            if value is not _MISSING and not self.add(value):
                return False
        return True


def _importable(function: FunctionType) -> bool:
    if by_reference(function):
        return True
    if by_value(function.__module__ or "") or function.__module__ not in sys.modules:
        return False
    found: Any = sys.modules[function.__module__]
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    # `@session.task` leaves a Task in the place of its function
    return found is function or (hasattr(found, "task_options") and found.function is function)
