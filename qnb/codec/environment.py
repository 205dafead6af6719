"""What a function imports, in which versions: told when a worker has others.

Found once a version of a function, from its globals and its import statements; compared once a lane, when the function
is opened there. importlib.metadata is imported when there is something to look up, and not before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from qnb.codec.code import Code, python_here
from qnb.codec.pickling import by_value

_INSTALLED = ("site-packages", "dist-packages")


def packages_of(functions: Iterable[FunctionType]) -> list[tuple[str, str, str]]:
    """(module, distribution, version) of what these functions use and somebody has installed, by name."""
    modules = {name.partition(".")[0] for function in functions for name in _modules(function)}
    found = []
    for module in sorted(modules - {"", "qnb"}):
        if module not in sys.stdlib_module_names and not by_value(module):
            distribution = _distribution(module)
            if distribution is not None:
                found.append((module, *distribution))
    return found


def differences(code: Code, by_reference: bool) -> list[tuple[str, str, str | None]]:
    """(name, version where it comes from, version here or None) of all that is another here."""
    found: list[tuple[str, str, str | None]] = []
    if by_reference and code.python and code.python != python_here():
        found.append(("Python", code.python, python_here()))
    for _, distribution, version in code.packages:
        here = _version(distribution)
        if here != version:
            found.append((distribution, version, here))
    return found


def tell(function: str, worker: str, differs: Iterable[tuple[str, str, str | None]]) -> str:
    """The differences as a sentence."""
    parts = [
        f"{name} {there} here and {'none' if version is None else version} there" for name, there, version in differs
    ]
    return (
        f"{function} runs on worker {worker} with other versions than here: {'; '.join(parts)}. "
        "Results may differ: install the same on both sides"
    )


def pip_line(packages: Iterable[tuple[str, str, str]], module: str | None) -> str:
    """The command that brings a module which is missing here, as the sender has it."""
    top = (module or "").partition(".")[0]
    wanted = next((f"{name}=={version}" for known, name, version in packages if known == top), top)
    return f"{sys.executable} -m pip install {wanted}"


def _modules(function: FunctionType) -> Iterator[str]:
    """Full names of the modules a function mentions."""
    namespace = function.__globals__
    values = [namespace.get(name) for name in global_names(function.__code__)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            values.append(cell.cell_contents)
    for value in values:
        if isinstance(value, ModuleType):
            yield value.__name__
        elif value is not None:
            of = value if callable(value) and hasattr(value, "__module__") else type(value)
            name = getattr(of, "__module__", None)
            if isinstance(name, str):
                yield name
    yield function.__module__ or ""
    yield from _imports(function.__code__)


def _imports(code: CodeType) -> Iterator[str]:
    """What import statements in the code name."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and isinstance(instruction.argval, str):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant)


def global_names(code: Any) -> set[str]:
    """Every name that the code, or code inside it, may look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= global_names(constant)
    return names


@functools.cache
def _distribution(module: str) -> tuple[str, str] | None:
    """Name and version of what was installed to bring a top-level module; None for what nobody has installed."""
    version = _version(module)
    if version is not None:
        return module, version
    loaded = sys.modules.get(module)
    try:
        spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = getattr(spec, "origin", None) or ""
    if not any(part in origin for part in _INSTALLED):
        return None
    names = set(_by_module().get(module, ()))
    if len(names) != 1:  # a namespace that many share
        return None
    name = names.pop()
    version = _version(name)
    return None if version is None else (name, version)


@functools.cache
def _by_module() -> dict[str, list[str]]:
    from importlib.metadata import packages_distributions

    return dict(packages_distributions())


@functools.cache
def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution) or None
    except (PackageNotFoundError, ValueError, KeyError):
        return None
