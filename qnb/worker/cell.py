"""The cell of a `%%task`, run in a namespace of its own."""

from __future__ import annotations

import ast
import builtins
import linecache
from collections.abc import Sequence
from inspect import CO_COROUTINE
from typing import Any

from qnb.codec.variables import Variables, open_variables
from qnb.worker.shows import display, show_figures_left


def run_cell(source: str, shown: str, filename: str, packed: bytes, names: Sequence[str]) -> Variables:
    """Run a cell with these variables; what `names` are at its end.

    `shown` is the text that tracebacks show. The value of a last expression is displayed, as in a notebook.
    """
    __tracebackhide__ = True
    namespace, parts = _begin(source, shown, filename, packed)
    value = None
    for part in parts:
        value = eval(part, namespace)
    return _end(namespace, value, names)


async def run_async_cell(source: str, shown: str, filename: str, packed: bytes, names: Sequence[str]) -> Variables:
    """The same for a cell that awaits something."""
    __tracebackhide__ = True
    namespace, parts = _begin(source, shown, filename, packed)
    value = None
    for part in parts:
        value = eval(part, namespace)
        if part.co_flags & CO_COROUTINE:
            value = await value
    return _end(namespace, value, names)


def _begin(source: str, shown: str, filename: str, packed: bytes) -> tuple[dict[str, Any], list[Any]]:
    linecache.cache[filename] = (len(shown), None, shown.splitlines(keepends=True), filename)
    namespace = {"__name__": "__main__", "__builtins__": builtins, **open_variables(packed)}
    tree = ast.parse(source, filename)
    parts: list[ast.Module | ast.Expression] = [tree]
    if tree.body and isinstance(last := tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        tree.body.pop()
        parts.append(ast.Expression(last.value))
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    modes = ("exec", "eval")
    return namespace, [compile(part, filename, mode, flags) for part, mode in zip(parts, modes, strict=False)]


def _end(namespace: dict[str, Any], value: Any, names: Sequence[str]) -> Variables:
    if value is not None:
        display(value)
    show_figures_left()
    return Variables({name: namespace[name] for name in names if name in namespace})
