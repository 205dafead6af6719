"""The build hook: whoever installs qnb, from a checkout or from an sdist, gets the widgets with it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WidgetsHook(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        needs: list[str] = _widgets(self.root).build_needs()
        return needs

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        widgets = _widgets(self.root)
        try:
            widgets.build()
        except widgets.CannotBuild as error:
            self.app.abort(f"qnb: {error}")


def _widgets(root: str) -> ModuleType:
    path = Path(root, "scripts", "widgets.py")
    spec = importlib.util.spec_from_file_location("qnb_build_widgets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
