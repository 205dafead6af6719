"""Celery's words for graphs of calls: `chain`, `group` and `chord`. Each submits at once; futures do the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qnb.errors import ConfigurationError

if TYPE_CHECKING:
    from qnb.session.future import Future


@dataclass(frozen=True, slots=True)
class Signature:
    """A call that is not made yet: a task or a function, and arguments. `task.s(…)` makes one."""

    task: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def submit(self, *before: Any) -> Future:
        """Make it, with these arguments in front of its own."""
        from qnb.session.session import current_session
        from qnb.session.task import Task

        if isinstance(self.task, Task):
            return self.task.submit(*before, *self.args, **self.kwargs)
        session = current_session()
        if session is None:
            raise ConfigurationError(f"no session to run {self.task!r}: make one, as in session = qnb.Session()")
        return session.submit(self.task, *before, *self.args, **self.kwargs)


Step = Signature | Callable[..., Any]


def chain(first: Step, *rest: Step) -> Future:
    """Each step gets the value of the one before as its first argument; the Future of the last.

    A step is a task or a function, or one with arguments: `qnb.chain(load.s("a.csv"), clean, fit.s(depth=3))`.
    """
    future = _signature(first).submit()
    for step in rest:
        future = _signature(step).submit(future)
    return future


def group(*steps: Step | Iterable[Step]) -> list[Future]:
    """Steps side by side; a list of their Futures, which may be an argument of another call."""
    return [_signature(step).submit() for step in _flat(steps)]


def chord(steps: Iterable[Step | Future], then: Step) -> Future:
    """`then` gets the list of the values of all steps as its first argument; its Future."""
    from qnb.session.future import Future

    futures = [step if isinstance(step, Future) else _signature(step).submit() for step in _flat(steps)]
    return _signature(then).submit(futures)


def _flat(steps: Iterable[Any]) -> list[Any]:
    steps = list(steps)
    return list(steps[0]) if len(steps) == 1 and isinstance(steps[0], Iterable) else steps


def _signature(step: Step) -> Signature:
    if isinstance(step, Signature):
        return step
    if not callable(step):
        raise ConfigurationError(f"{step!r} is no step: give a task or a function, or task.s(arguments)")
    return Signature(step)
