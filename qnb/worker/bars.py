"""tqdm's own bars become the progress of the task that makes them. tqdm is never imported here: it is met when it is.

Of several bars the outermost tells. A bar that a task sends to a file of its own is left alone, and so is every bar
outside of tasks.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from qnb.worker.imports import when_imported
from qnb.worker.inside import progress
from qnb.worker.tape import voice_here

_STD, _NOTEBOOK = "tqdm.std", "tqdm.notebook"
_FILE = 4  # the place of `file` among tqdm's arguments
_watched: list[bool] = []


def watch_imports(whole: bool) -> None:
    """Meet tqdm when it is imported, or now. `whole`: this process has nothing but tasks."""
    if _watched:
        return
    _watched.append(True)
    for name in (_STD, _NOTEBOOK) if whole else (_STD,):
        when_imported(name, _change)


class _Nowhere(io.StringIO):
    """Where a bar is drawn that is told as progress."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True  # a bar that shows itself on terminals only is told, too


def _change(module: Any) -> None:
    if module.__name__ == _NOTEBOOK:
        # No front end hears a lane's widgets.
        module.tqdm = module.tqdm_notebook = sys.modules[_STD].tqdm
        module.trange = sys.modules[_STD].trange
        return
    bar = module.tqdm
    draw, make = bar.display, bar.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) <= _FILE and kwargs.get("file") in (None, sys.stdout, sys.stderr) and voice_here() is not None:
            kwargs["file"] = _Nowhere()
        make(self, *args, **kwargs)

    def display(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(getattr(self.fp, "_wrapped", self.fp), _Nowhere):
            return draw(self, *args, **kwargs)
        if not self.pos:
            parts = ((self.desc or "").removesuffix(": "), str(self.postfix or ""))
            progress(self.n, self.total, ", ".join(part for part in parts if part))
        return True

    bar.__init__, bar.display = __init__, display
