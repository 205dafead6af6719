"""`%load_ext qnb`: the magics and their completion. `%unload_ext qnb` puts back exactly what was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qnb.notebook.completion import complete_qnb
from qnb.notebook.magics import MAGIC, QnbMagics


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What loading replaced; `owner` is the entry of the magics' registry."""

    magics: QnbMagics
    line_magic: Any
    owner: Any


_loaded: dict[int, _Loaded] = {}


def load(shell: Any) -> None:
    """Given the InteractiveShell, by `%load_ext qnb`; loading twice is loading once."""
    if id(shell) in _loaded:
        return
    manager = shell.magics_manager
    magics = QnbMagics(shell)
    before = _Loaded(magics, manager.magics["line"].get(MAGIC), manager.registry.get(QnbMagics.__name__))
    shell.register_magics(magics)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(complete_qnb)
    _loaded[id(shell)] = before


def unload(shell: Any) -> None:
    """By `%unload_ext qnb`. Sessions and the views of batches go on."""
    before = _loaded.pop(id(shell), None)
    if before is None:
        return
    manager = shell.magics_manager
    lines = manager.magics["line"]
    if getattr(lines.get(MAGIC), "__self__", None) is before.magics:  # else somebody has replaced ours since
        _put_back(lines, MAGIC, before.line_magic)
    if manager.registry.get(QnbMagics.__name__) is before.magics:
        _put_back(manager.registry, QnbMagics.__name__, before.owner)
    if shell.Completer is not None and complete_qnb in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(complete_qnb)


def _put_back(table: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        table.pop(name, None)
    else:
        table[name] = before
