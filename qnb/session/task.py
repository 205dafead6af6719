"""A function that can also run elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qnb.errors import ConfigurationError
from qnb.session.canvas import Signature
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    from qnb.session.batch import Batch
    from qnb.session.future import Future
    from qnb.session.session import Session


class Task:
    """A function with options. Called, it runs here; `.submit` and `.map` run it on workers."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions, session: Session | None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.task_options = options
        self._session = session

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.task_options.name or getattr(self.function, '__qualname__', self.function)}>"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __reduce__(self) -> Any:
        # A session stays where it is: on a worker a task is its function.
        return Task, (self.function, self.task_options, None)

    @property
    def session(self) -> Session:
        """The session that it belongs to."""
        if self._session is None:
            raise ConfigurationError(
                f"{self!r} has come to a worker, where there is no session: call it, or submit from the notebook"
            )
        return self._session

    def s(self, /, *args: Any, **kwargs: Any) -> Signature:
        """A call of it that is not made yet, for chain, group and chord."""
        return Signature(self, args, kwargs)

    def options(self, **changes: Any) -> Task:
        """The same task with other options."""
        return Task(self.function, self.task_options.change(**changes), self._session)

    def submit(self, /, *args: Any, **kwargs: Any) -> Future:
        """Run it on a worker."""
        return self.session.submit_with(self.function, self.task_options, args, kwargs)

    def map(self, /, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int | None = None) -> Batch:
        """Run it on workers for each item; more iterables are more arguments."""
        return self.session.map(self, *iterables, timeout=timeout, chunksize=chunksize)

    def starmap(self, /, tuples: Iterable[Iterable[Any]]) -> Batch:
        """Run it on workers for each tuple of arguments."""
        return self.session.starmap(self, tuples)

    def sweep(self, grid: Mapping[str, Iterable[Any]], /, **fixed: Any) -> Batch:
        """Run it on workers for every combination of the grid's values."""
        return self.session.sweep(self, grid, **fixed)
