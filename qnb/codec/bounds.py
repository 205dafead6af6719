"""What fits together in a message, looked at before anything is done with it.

msgspec sees to types, and to array sizes that the bytes do not bear out; it ends too deep a nesting with an error. Here
is what the fields say of each other: counts against lengths, positions against counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qnb.message import DONE, LOST, Frame, Outcomes, Progress

MOST_CALLS = 1 << 40  # of a run: above, positions no longer fit where they are kept
MOST_ATTEMPTS = 1 << 31
_OVER = bytes(range(DONE, LOST + 1))


def fault_of(message: Any) -> str | None:
    """What does not fit together in a decoded message; None when all does."""
    check = _CHECKS.get(type(message))
    return None if check is None else check(message)


def array_length(data: bytes, at: int) -> int:
    """How many elements the msgpack array that begins at `at` says to have; -1 when none begins there."""
    head = data[at] if at < len(data) else 0
    if 0x90 <= head <= 0x9F:
        return head & 0x0F
    size = {0xDC: 2, 0xDD: 4}.get(head)
    return -1 if size is None else int.from_bytes(data[at + 1 : at + 1 + size])


def _range_fault(first: int, count: int, attempt: int) -> str | None:
    if first >= 0 and count > 0 and first + count <= MOST_CALLS and 0 < attempt <= MOST_ATTEMPTS:
        return None
    return f"it is about {count} calls from {first} on, attempt {attempt}"


def _frame_fault(frame: Frame) -> str | None:
    if len(frame.function.hash) != 16:
        return f"its function has a hash of {len(frame.function.hash)} bytes"
    if not 0 <= frame.options.priority <= 9:
        return f"it has priority {frame.options.priority}"
    if frame.blob is not None and len(frame.blob) != 32:
        return "the name of its blob is no hash"
    return _range_fault(frame.first, frame.count, frame.attempt)


def _outcomes_fault(outcomes: Outcomes) -> str | None:
    count, states, values = outcomes.count, outcomes.states, outcomes.values
    if states and (len(states) != count or states.translate(None, _OVER)):
        return f"it has {len(states)} states for {count} calls, or some that are no end"
    if values and array_length(values, 1) != count:
        return f"it has {array_length(values, 1)} values for {count} calls"
    if outcomes.times and len(outcomes.times) != 16 * count:
        return f"it has {len(outcomes.times)} bytes of times for {count} calls"
    for positions in (outcomes.failures, outcomes.outputs, outcomes.displays):
        if positions and not (min(positions) >= 0 and max(positions) < count):
            return f"it tells of call {max(positions)} among {count}"
    return _range_fault(outcomes.first, count, outcomes.attempt)


def _progress_fault(progress: Progress) -> str | None:
    indices = progress.indices
    if indices and not (min(indices) >= 0 and max(indices) < MOST_CALLS):
        return "it tells of a call that no run has"
    return None if 0 <= progress.state < DONE else f"it has state {progress.state}"


_CHECKS: dict[type, Callable[[Any], str | None]] = {
    Frame: _frame_fault,
    Outcomes: _outcomes_fault,
    Progress: _progress_fault,
}
