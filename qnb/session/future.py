"""One call, as a concurrent.futures.Future that can also be awaited."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from qnb import message
from qnb.codec.output import Heard
from qnb.codec.payloads import PLAIN
from qnb.codec.pickling import is_within
from qnb.codec.references import Call, Referable
from qnb.errors import ConfigurationError, DependencyFailed
from qnb.message import STATES, Display, Function, Progress, ValueOf, task_id
from qnb.session.echo import Echo, await_telling, in_kernel

if TYPE_CHECKING:
    from qnb.session.session import Session

SMALL_BYTES = 65536
_OVER = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)


class Owner(Protocol):
    """The run that a future's call belongs to."""

    run: str
    session: Session
    function: Function


def is_small(value: Any) -> bool:
    """Whether a value takes no room worth sparing."""
    return sys.getsizeof(value) < SMALL_BYTES if type(value) in PLAIN else is_within(value, SMALL_BYTES)


def to_refer(owner: Owner, backend: Any, here: bool, what: str) -> bool:
    """Whether a call of a session with this backend is to refer to what stands in the owner's; else it is sent along.

    ConfigurationError where neither can be.
    """
    session = owner.session
    there = backend is session.backend or (backend.durable and backend.url == session.backend.url)
    if here and not (there and backend.durable):
        return False
    if there:
        return True
    raise ConfigurationError(
        f"{what} belongs to a session with another backend ({session.backend_url}): "
        "wait for it, or give its result() as the argument"
    )


_making = threading.RLock()  # held while a Condition is made, and while a call ends without one


class _MadeWhenNeeded:
    """The Condition of a future, and what concurrent.futures keeps under it: of most futures nobody asks for them
    before they are over, and to make them takes longer than all else of a submit."""

    def __get__(self, future: Future, owner: type) -> threading.Condition:
        with _making:
            made: threading.Condition | None = future.__dict__.get("_condition")
            if made is None:  # no other thread was first
                made = threading.Condition()
                future.__dict__ |= {"_waiters": [], "_done_callbacks": [], "_condition": made}
        return made


class Future(concurrent.futures.Future[Any], Referable):
    """The outcome to be of one call.

    All of concurrent.futures.Future, and: `await future`, `.id`, `.state`, `.traceback`,
    `.cancel(terminate=True)`. `wait` and `as_completed` of concurrent.futures take it.
    """

    _condition: Any = _MadeWhenNeeded()
    # Of most futures these stay as they are: no reason to set them with each submit.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _code = message.QUEUED
    _cause: BaseException | None = None
    _remote_traceback = ""
    _small: bool | None = None
    _unsent = False  # it failed here, and nobody else will ever hear of it
    _output = ""
    _displays: Sequence[Display] = ()
    _heard: Heard | None = None  # its output while it runs
    _echo_made: Echo | None = None
    _steps: tuple[float, float | None, str] | None = None

    def __init__(self, owner: Owner, index: int, call: bytes | Call | None = None) -> None:
        self._owner = owner
        self._index = index
        self._call = call  # its arguments, for `replay`

    def __repr__(self) -> str:
        return f"<Future {self.id} {self.state}>"

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        self._owner.session.flush()
        if in_kernel():
            return await_telling(self).__await__()
        return asyncio.wrap_future(self).__await__()

    @property
    def id(self) -> str:
        """The task id, `run:index`."""
        return task_id(self._owner.run, self._index)

    @property
    def state(self) -> str:
        """pending, queued, running, retrying, done, failed, cancelled or lost."""
        return STATES[self._code]

    @property
    def traceback(self) -> str:
        """The remote traceback as text; empty unless the call failed."""
        return self._remote_traceback

    @property
    def output(self) -> str:
        """What the call printed, on stdout and stderr; while it runs, what has come so far.

        Of more than 64 Ki characters the beginning and the end.
        """
        if self._output or self._heard is None or self._code == message.DONE:
            return self._output
        return self._heard.text()

    @property
    def displays(self) -> list[Display]:
        """What the call has shown: figures, HTML, anything given to `display`, each with `.data` and `.metadata` by
        MIME type and `.at`, its place in `output`; while it runs, what has come so far.

        Of more than 16 MiB the first and the last. In a notebook, `future.displays[0]` shows the first again.
        """
        if self._displays or self._heard is None or self._code == message.DONE:
            return list(self._displays)
        return [display for _, display in sorted(self._heard.displays.items())]

    @property
    def progress(self) -> tuple[float, float | None, str] | None:
        """(done, total, note) as the call told it last by `qnb.progress`, `qnb.track` or tqdm; None when it did not."""
        return self._steps

    def done(self) -> bool:
        """Whether it is over, however it ended."""
        return self._state in _OVER

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds and return the call's value, or raise its exception.

        Raises TimeoutError when it is not over by then, CancelledError when it was cancelled, TaskLost when
        its workers died. Ctrl-C ends the waiting, not the call.
        """
        __tracebackhide__ = True  # IPython and pytest show the caller's line, then the task's own lines
        self._await_end(timeout)
        if self._state != FINISHED:
            raise self._cause or CancelledError(f"task {self.id} was cancelled")
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                del self  # as in concurrent.futures: the exception's traceback must not keep the future alive
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait at most `timeout` seconds and return the call's exception, or None when it has a value."""
        self._await_end(timeout)
        if self._state != FINISHED:
            raise self._cause or CancelledError(f"task {self.id} was cancelled")
        return self._exception

    def _await_end(self, timeout: float | None) -> None:
        if self._state in _OVER:
            if (self._output or self._displays or self._echo_made) and in_kernel():
                self._echo.look(self)
            return
        session = self._owner.session
        try:
            over = session.wait_for(self._done_telling if in_kernel() else self.done, self._condition, timeout)
        except KeyboardInterrupt:
            session.interrupted(self.cancel, f"task {self.id}")
            raise
        if not over:
            raise TimeoutError(f"task {self.id} is not over after {timeout:g} s; it is {self.state}")

    @property
    def _echo(self) -> Echo:
        if self._echo_made is None:
            self._echo_made = Echo()
        return self._echo_made

    def _done_telling(self) -> bool:
        """Whether it is over; what it has printed is shown in the cell that waits."""
        over = self.done()
        if self._heard is not None or (over and (self._output or self._displays or self._echo_made)):
            self._echo.look(self)
        return over

    def replay(self) -> Any:
        """Run the call here, with the code and the arguments that were sent: its value, or its own exception with a
        traceback to step into (`%debug`). It changes nothing of the future.

        QnbError when the arguments are not here: a submit keeps those up to 64 KiB, a map all (64 MiB once attached).
        """
        __tracebackhide__ = True
        from qnb.session.replay import replay

        return replay(self._owner, self._index, self._call)

    def cancel(self, terminate: bool = False) -> bool:
        """True when the call will never run, or has been killed; False when it runs on or is over.

        A call that is running goes on, unless `terminate`: then its lane is killed.
        """
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return True
        runs = self._state == RUNNING and self._code != message.RETRYING  # a call that waits for its back-off does not
        if self._state == FINISHED or (runs and not terminate):
            return False
        self._owner.session.cancel_calls([(self._owner.run, self._index, 1)], terminate=terminate)
        return self.cancelled()

    # As an argument of another call ----------------------------------------------------------------------------

    def reference(self, backend: Any) -> ValueOf | None:
        """What stands for its value; None when that is here, and cannot be had from this backend."""
        if self._unsent:
            error = self._exception
            raise DependencyFailed(f"not run, since task {self.id} was never sent: {error}") from error
        here = self._state == FINISHED and self._exception is None
        if here and self._small is None:
            self._small = is_small(self._result)
        if here and self._small:
            return None  # it is sent along: nothing has to be there any more
        if not to_refer(self._owner, backend, here, f"task {self.id}"):
            return None
        return ValueOf(self._owner.run, self._index, 1, True, self._owner.function.name)

    def value(self) -> Any:
        """Its value, which is here."""
        return self._result

    # What the collector does with it -------------------------------------------------------------------------

    def _said(self, output: str, heard: Heard | None, steps: tuple[float, float | None, str] | None) -> None:
        self._output, self._steps = output, steps
        if heard is not None or self._echo_made is None:  # who echoes looks at what was heard before, once more
            self._heard = heard

    def _hear(self, progress: Progress) -> None:
        if progress.steps is not None:
            self._steps = progress.steps
        if progress.output or progress.displays:
            if self._heard is None or self._heard.attempt != progress.attempt:
                self._heard = Heard(progress.attempt)
            if progress.output:
                self._heard.add(progress.offset, progress.output)
            self._heard.show(progress.displays)

    def _start(self, code: int) -> None:
        self._code = code
        with self._condition:  # held throughout: another thread may be ending it
            if self._state == "PENDING":
                self.set_running_or_notify_cancel()

    def _end_done(self, value: Any) -> None:
        self._code = message.DONE
        with _making:
            if "_condition" not in self.__dict__:  # nobody waits, or has asked to be called
                if self._state not in _OVER:
                    self._result, self._state = value, FINISHED
                return
        if self._state not in _OVER:
            with suppress(concurrent.futures.InvalidStateError):  # another thread was first
                self.set_result(value)

    def _end_failed(self, code: int, error: BaseException, traceback: str) -> None:
        self._code = code
        self._remote_traceback = traceback
        if self._state not in _OVER:
            with suppress(concurrent.futures.InvalidStateError):  # another thread was first
                self.set_exception(error)

    def _end_cancelled(self, cause: BaseException | None = None) -> None:
        with self._condition:
            if self._state in _OVER:
                return
            self._state = CANCELLED
            self._code = message.CANCELLED
            self._cause = cause
            self._condition.notify_all()
        self.set_running_or_notify_cancel()
        self._invoke_callbacks()  # type: ignore[attr-defined]
