"""`%load_ext qnb`: the magics and their completion. `%unload_ext qnb` puts back exactly what was there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qnb.notebook.completion import complete_qnb
from qnb.notebook.magics import MAGIC, QnbMagics
from qnb.notebook.task_magic import TASK, TaskMagics
from qnb.worker.imports import when_imported

# (kind of magic, its name)
_PLACES: dict[type, tuple[str, str]] = {QnbMagics: ("line", MAGIC), TaskMagics: ("cell", TASK)}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What loading replaced: of each class of magics the magic and the entry in the registry."""

    magics: tuple[Any, ...]
    before: tuple[tuple[Any, Any], ...]
    ends: tuple[Callable[[], None], ...]


_loaded: dict[int, _Loaded] = {}


def load(shell: Any) -> None:
    """Given the InteractiveShell, by `%load_ext qnb`; loading twice is loading once."""
    if id(shell) in _loaded:
        return
    manager = shell.magics_manager
    before = tuple(
        (manager.magics[kind].get(name), manager.registry.get(each.__name__)) for each, (kind, name) in _PLACES.items()
    )
    magics = tuple(each(shell) for each in _PLACES)
    for each in magics:
        shell.register_magics(each)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(complete_qnb)
    shell.events.register("pre_run_cell", magics[1].deliver)
    ends = (when_imported("pandas", _with_pandas), when_imported("joblib", _with_joblib))
    _loaded[id(shell)] = _Loaded(magics, before, ends)


def unload(shell: Any) -> None:
    """By `%unload_ext qnb`. Sessions, tasks and the views of batches go on, and so do pandas' and joblib's ways in."""
    loaded = _loaded.pop(id(shell), None)
    if loaded is None:
        return
    manager = shell.magics_manager
    for magics, (magic, owner) in zip(loaded.magics, loaded.before, strict=True):
        kind, name = _PLACES[type(magics)]
        table = manager.magics[kind]
        if getattr(table.get(name), "__self__", None) is magics:  # else somebody has replaced ours since
            _put_back(table, name, magic)
        if manager.registry.get(type(magics).__name__) is magics:
            _put_back(manager.registry, type(magics).__name__, owner)
    if shell.Completer is not None and complete_qnb in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(complete_qnb)
    shell.events.unregister("pre_run_cell", loaded.magics[1].deliver)
    for end in loaded.ends:
        end()


def _put_back(table: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        table.pop(name, None)
    else:
        table[name] = before


def _with_pandas(_module: Any) -> None:
    import qnb.pandas  # noqa: F401 - which registers itself


def _with_joblib(_module: Any) -> None:
    import qnb.joblib  # noqa: F401 - which registers itself
