"""What a task prints, shown in the notebook cell that waits for it: as it comes, once, and never in another cell."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qnb.session.future import Future

LOOK_SECONDS = 0.1
_LINES = 20


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel. In a script nothing is echoed: its stdout may be read by others."""
    module: Any = sys.modules.get("ipykernel.kernelapp")
    return module is not None and module.IPKernelApp.initialized()


class Echo:
    """Writes the output of one call to the stdout of whoever waits for it."""

    def __init__(self) -> None:
        self._position = 0
        self._over = False

    def look(self, future: Future) -> None:
        """Write what is new; called in the thread that waits, which is how the text finds its cell."""
        heard, done = future._heard, future.done()
        if done and not self._over:
            self._over = True
            text = self._rest(future.output, heard.text() if heard is not None else "")
        elif heard is not None and not done:
            offset, text = heard.since(self._position)
            self._position = offset + len(text)
        else:
            return
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

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


async def await_telling(future: Future) -> Any:
    """Await a future, and echo what it prints meanwhile."""
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
