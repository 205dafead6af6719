"""`display(…)` and `plt.show()` of a task are kept as MIME bundles, as a notebook's front end would be sent them.

IPython is met when a task or its function brings it; only `display` that nobody imported looks for it.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
from typing import Any

from qnb.worker.imports import when_imported
from qnb.worker.tape import VOICE, voice_here

_IMAGES = ("image/png", "image/jpeg")


def take_displays() -> None:
    """Make all that this process displays part of its calls. For a process that has nothing but tasks."""
    if not hasattr(builtins, "display"):
        builtins.display = display  # type: ignore[attr-defined] # as IPython does
    when_imported("IPython.core.display_functions", _change)
    when_imported("matplotlib._pylab_helpers", _close_what_is_left)


def display(*objects: Any, **options: Any) -> Any:
    """IPython's display, for functions of a notebook, where it is there without an import; else print."""
    try:
        show = importlib.import_module("IPython.display").display
    except ImportError:
        return print(*objects)
    return show(*objects, **options)


def _change(module: Any) -> None:
    """Replace what publishes to a front end by what publishes to the call that runs."""

    @functools.wraps(module.display)
    def display(*objects: Any, **options: Any) -> Any:
        return _display(module, objects, options)

    @functools.wraps(module.publish_display_data)
    def publish_display_data(data: Any, metadata: Any = None, **options: Any) -> None:
        _publish(data, metadata, options)

    @functools.wraps(module.clear_output)
    def clear_output(wait: bool = False) -> None:
        """All that a call shows is kept."""

    module.display, module.publish_display_data, module.clear_output = display, publish_display_data, clear_output


def _display(module: Any, objects: tuple[Any, ...], options: dict[str, Any]) -> Any:
    transient = options.pop("transient", None) or {}
    if display_id := options.pop("display_id", None):
        transient = transient | {"display_id": module._new_id() if display_id is True else display_id}
    raw, include, exclude = (options.pop(name, None) for name in ("raw", "include", "exclude"))
    metadata = options.pop("metadata", None) or {}
    options.pop("clear", None)
    if options.get("update") and "display_id" not in transient:
        raise TypeError("display_id required for update_display")
    if not objects and display_id:
        objects, raw = ({},), True
    for each in objects:
        data, about = (each, {}) if raw else _formatter().format(each, include=include, exclude=exclude)
        if data or raw:  # else its _ipython_display_ has seen to it
            _publish(data, about | metadata, options | {"transient": transient})
    return module.DisplayHandle(transient["display_id"]) if display_id else None


def _publish(data: dict[str, Any], metadata: dict[str, Any] | None, options: dict[str, Any]) -> None:
    voice = voice_here()
    if voice is not None:
        id = str((options.get("transient") or {}).get("display_id", ""))
        voice.tape.show(data, metadata or {}, id, bool(options.get("update")))


@functools.cache
def _formatter() -> Any:
    """What makes MIME bundles, with figures as PNG."""
    formatter = importlib.import_module("IPython.core.formatters").DisplayFormatter()
    formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _draw)
    return formatter


def _draw(figure: Any) -> Any:
    return importlib.import_module("IPython.core.pylabtools").print_figure(figure, fmt="png")


def _close_what_is_left(module: Any) -> None:
    """A figure that a call has neither shown nor closed goes with it: the next call's `plt.show()` would show it."""
    figures = module.Gcf
    activate = figures._set_new_active_manager.__func__

    def _set_new_active_manager(cls: Any, manager: Any) -> None:
        activate(cls, manager)
        if (voice := voice_here()) is not None:
            left = voice.tape.after
            if not isinstance(left, _Left):
                left = voice.tape.after = _Left(cls)
            left.managers.append(manager)
            voice.tape.parts.append("")  # so that the end of the call is looked at

    figures._set_new_active_manager = classmethod(_set_new_active_manager)


class _Left:
    """Closes the figures that a call has made and nobody has closed."""

    def __init__(self, figures: Any) -> None:
        self.managers: list[Any] = []
        self._figures = figures

    def __call__(self) -> None:
        for manager in self.managers:
            self._figures.destroy(manager)


def show_figures_left() -> None:
    """Show what this call has drawn and not shown, as a notebook does at the end of a cell."""
    voice, pyplot = voice_here(), sys.modules.get("matplotlib.pyplot")
    left = voice.tape.after if voice is not None else None
    if pyplot is not None and isinstance(left, _Left):
        for manager in left.managers:
            if pyplot.fignum_exists(manager.num):
                display(manager.canvas.figure)


def share_displays() -> None:
    """In a kernel's own process: what calls in this thread display is theirs."""
    shell_of = getattr(sys.modules.get("IPython.core.getipython"), "get_ipython", None)
    publisher = getattr(shell_of() if shell_of else None, "display_pub", None)
    if publisher is not None and hasattr(publisher, "register_hook") and _take not in publisher._hooks:
        publisher.register_hook(_take)  # which is kept by thread


def _take(message: dict[str, Any]) -> dict[str, Any] | None:
    voice = VOICE.get()
    if voice is None or voice.work is None:
        return message
    if message["msg_type"] != "clear_output":
        content = message["content"]
        data = {kind: _as_bytes(kind, value) for kind, value in content["data"].items()}
        _publish(data, content["metadata"], content | {"update": message["msg_type"] == "update_display_data"})
    return None


def _as_bytes(kind: str, value: Any) -> Any:
    """Images are bytes here, and base64 in a message."""
    if kind in _IMAGES and isinstance(value, str):
        import base64

        return base64.b64decode(value)
    return value
