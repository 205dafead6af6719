"""What a task prints and shows, in the cell that waits for it: as it comes, once, and never in another cell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qnb.message import Display

if TYPE_CHECKING:
    from qnb.session.future import Future

LOOK_SECONDS = 0.1
_LINES = 20


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel. In a script nothing is echoed: its stdout may be read by others."""
    module: Any = sys.modules.get("ipykernel.kernelapp")
    return module is not None and module.IPKernelApp.initialized()


class Echo:
    """Writes the output of one call to the stdout of whoever waits for it, and displays what it shows."""

    def __init__(self) -> None:
        self._position = 0
        self._over = False
        self._shown: dict[int, Display] = {}

    def look(self, future: Future) -> None:
        """Write what is new; called in the thread that waits, which is how it finds its cell."""
        heard, done = future._heard, future.done()
        if done and not self._over:
            self._over = True
            output = future.output
            text = self._rest(output, heard.text() if heard is not None else "")
            offset = len(output) - len(text)
        elif heard is not None and not done:
            offset, text = heard.since(self._position)
            self._position = offset + len(text)
        else:
            return
        for display in future.displays:
            before = self._shown.get(display.number)
            if display != before and (before is None or before.data != display.data):
                place = max(0, min(display.at - offset, len(text)))
                _write(text[:place])
                offset, text = offset + place, text[place:]
                self._shown[display.number] = display
                _show(display, f"{future.id}:{display.id or display.number}", before is not None)
        _write(text)

    def _rest(self, output: str, heard: str) -> str:
        """What of the whole output has not been written."""
        if not self._position:
            return output
        if output.startswith(heard) and self._position == len(heard):
            return output[self._position :]
        # Shortened, or lines were written over: what follows the last line that both have, else the last lines.
        line = heard.rpartition("\n")[0].rpartition("\n")[2]
        _, found, rest = output.rpartition(f"{line}\n") if line else ("", "", "")
        return rest if found else "\n" + "".join(output.splitlines(keepends=True)[-_LINES:])


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _show(display: Display, id: str, update: bool) -> None:
    app: Any = sys.modules["ipykernel.kernelapp"]
    publisher = app.IPKernelApp.instance().shell.display_pub
    publisher.publish(display.data, display.metadata, transient={"display_id": id}, update=update)


async def await_telling(future: Future) -> Any:
    """Await a future, and echo what it prints meanwhile."""
    import asyncio  # a third of what a session would load

    wrapped = asyncio.wrap_future(future)
    try:
        while not wrapped.done():
            await asyncio.wait([wrapped], timeout=LOOK_SECONDS)
            future._echo.look(future)
    except asyncio.CancelledError:
        wrapped.cancel()
        raise
    future._echo.look(future)
    return wrapped.result()
