"""One call of a batch, with everything there is to tell of it."""

from __future__ import annotations

import reprlib
import traceback
from typing import Any

from qnb.message import DONE, STATES
from qnb.notebook.snapshot import BatchLike

# Characters. The end of an output says most, and the start of a value.
OUTPUT, VALUE = 20_000, 4000


class _Long(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = VALUE
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = self.maxarray = 100


def detail(batch: BatchLike, index: int) -> dict[str, Any]:
    """Call `index`: arguments, result, output, traceback. Times are Unix seconds, None where there is none."""
    data = batch.data
    if not 0 <= index < len(batch):
        raise IndexError(f"call {index} of a batch of {len(batch)}")
    state = data.states[index]
    queued, started, finished = (column[index] or None for column in (data.queued, data.started, data.finished))
    output = data.output(index)
    return {
        "index": index,
        "id": f"{batch.run}:{index}",
        "state": STATES[state],
        "arguments": [[name, long(values[index])] for name, values in batch.parameters],
        "result": long(data.values[index]) if state == DONE else None,
        "error": data.error_text(index),
        "traceback": _traceback(batch, index),
        "output": output if len(output) <= OUTPUT else f"…{output[-OUTPUT:]}",
        "worker": data.worker_names[data.workers[index]],
        "attempts": data.attempts[index],
        "times": [queued, started, finished],
    }


def example(batch: BatchLike, kind: str) -> int:
    """The first call that failed with this exception."""
    data = batch.data
    for index in sorted({*data.failures, *data.errors}):
        if (data.error_text(index) or "").partition(": ")[0] == kind:
            return index
    raise KeyError(f"no call failed with {kind}")


def long(value: Any) -> str:
    """A value in at most some thousand characters; never raises, whatever its repr does."""
    try:
        text = _Long().repr(value)
    except Exception as error:  # a user's own __repr__ may do anything
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    return text if len(text) <= VALUE else f"{text[:VALUE]}…"


def _traceback(batch: BatchLike, index: int) -> str:
    failure = batch.data.failures.get(index)
    if failure is not None:
        return failure.traceback
    error = batch.data.errors.get(index)
    return "" if error is None else "".join(traceback.format_exception(error))
