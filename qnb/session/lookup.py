"""What is known of a task of which one has only the id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qnb.backends.base import Backend
from qnb.codec.signing import OUTCOMES, Signer
from qnb.message import CANCELLED, DONE, STATES, Outcomes, split_task_id

UNKNOWN = "unknown"


def state_of(task: str, sinks: Mapping[str, Any], backend: Backend, signer: Signer) -> str:
    """The state of a task: of this session's runs, else as its stored outcome tells; "unknown" when nobody knows it."""
    try:
        run, index = split_task_id(task)
    except ValueError:
        return UNKNOWN
    sink = sinks.get(run)
    state = None if sink is None else sink.state(index)
    if state is not None:
        return STATES[state]
    for record in backend.fetch_many(run, [(index, 1)]):
        if record.first <= index < record.first + record.count:
            states = signer.unpack(OUTCOMES, record.data, Outcomes).states
            return STATES[states[index - record.first] if states else DONE]
    if any(run == revoked and first <= index < first + count for revoked, first, count in backend.revoked()):
        return STATES[CANCELLED]
    return UNKNOWN
