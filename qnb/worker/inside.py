"""What a task may ask and say while it runs: `qnb.current`, `qnb.progress`, `qnb.track`."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from qnb.codec.output import sound
from qnb.message import task_id
from qnb.worker.tape import voice_here

T = TypeVar("T")
_NOTE = 200
_LARGE = 2**63
_TRACK_SECONDS = 0.05


class Current(msgspec.Struct, frozen=True):
    """The call that runs: `id` is `run:index`, `attempt` counts from 1, `deadline` is Unix time or None."""

    id: str
    run: str
    index: int
    attempt: int
    worker: str
    deadline: float | None


def current() -> Current | None:
    """The call in which this is asked; None outside of tasks."""
    voice = voice_here()
    work = voice.work if voice is not None else None
    if voice is None or work is None:
        return None
    _, index, started = voice.where()
    limits = [limit for limit in (work.soft_timeout, work.timeout) if limit is not None]
    deadline = started + min(limits) if limits else None
    return Current(task_id(work.run, index), work.run, index, work.attempt, voice.worker, deadline)


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Tell how far this task is: `done` of `total`, and a word about it. The newest wins; outside of tasks nothing.

    It costs less than a microsecond or two: at most ten a second are sent.
    """
    voice = voice_here()
    if voice is not None:
        serial, index, _ = voice.where()
        voice.steps = (serial, index, _plain(done), None if total is None else _plain(total), sound(str(note)[:_NOTE]))


def track(iterable: Iterable[T], total: float | None = None, note: str = "") -> Iterator[T]:
    """Iterate, and tell the progress of it. `total`: how many there will be, where `iterable` cannot tell."""
    if total is None:
        total = operator.length_hint(iterable) or None
    done, next_time = 0, 0.0
    for item in iterable:
        now = time.monotonic()
        if now >= next_time:
            next_time = now + _TRACK_SECONDS
            progress(done, total, note)
        yield item
        done += 1
    progress(done, total, note)


def _plain(value: float) -> int | float:
    """A number that can be sent; numpy's and others' as floats."""
    return value if type(value) is int and -_LARGE <= value < _LARGE else float(value)
