"""Libraries that are met when somebody imports them, and are never imported for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder  # importlib.abc takes longer to import than all of a lane
from types import ModuleType
from typing import Any


def when_imported(name: str, change: Callable[[Any], None]) -> Callable[[], None]:
    """Call `change` with a module once it has been loaded, now or when it is; returns what ends the waiting."""
    if name in sys.modules:
        change(sys.modules[name])
        return lambda: None
    finder = _Finder(name, change)
    sys.meta_path.insert(0, finder)
    return finder.leave


class _Finder:
    """Finds one module as all others do, and has it changed once it has been loaded."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name = name
        self._change = change

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _loaded(self, module: ModuleType) -> None:
        self.leave()
        self._change(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, self._loaded)
            spec.loader = loader
        return spec


class _Loader:
    def __init__(self, loader: Any, change: Callable[[Any], None]) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
