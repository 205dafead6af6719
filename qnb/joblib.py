"""`joblib.parallel_config(backend="qnb")`: joblib, and with it scikit-learn, on the workers of a session.

`import qnb.joblib` or `%load_ext qnb` registers the backend. It takes the current session, or makes the embedded one;
`parallel_config("qnb", session=…)` names another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import joblib
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from qnb.errors import ConfigurationError, QnbError
from qnb.session.options import TaskOptions

if TYPE_CHECKING:
    from qnb.session.future import Future
    from qnb.session.session import Session

NAME = "qnb"


class QnbBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Sends joblib's batches of calls to workers. In a worker everything nested runs one after the other."""

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_return_generator = True
    supports_inner_max_num_threads = False
    uses_threads = False
    supports_sharedmem = False

    def __init__(self, session: Session | None = None, nesting_level: int | None = None, **kwargs: Any) -> None:
        super().__init__(nesting_level=nesting_level, **kwargs)
        self._given = session
        self._futures: set[Future] = set()
        self._lock = threading.Lock()

    @property
    def _session(self) -> Session:
        from qnb.session.session import Session, current_session

        if self._given is None or self._given.closed:
            self._given = current_session() or Session()
        return self._given

    def __reduce__(self) -> Any:
        return QnbBackend, (None, self.nesting_level)  # a session stays where it is

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """All lanes for -1 and None, all but one for -2, and so on; never more than there are.

        Two where there is one lane: what joblib takes for a single job it runs here, and not on a worker.
        """
        if n_jobs == 0:
            raise ConfigurationError("n_jobs=0 means nothing: give the number of jobs, or -1 for all that workers do")
        there = self._lanes()
        if n_jobs is None:
            return there
        return max(1, there + 1 + n_jobs) if n_jobs < 0 else min(n_jobs, there)

    def _lanes(self) -> int:
        """How many calls the workers run at a time."""
        session = self._session
        seen = sum(int(worker.get("concurrency", 1)) for worker in session.workers)
        return max(2, seen or session.local_workers)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Called when a Parallel begins."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future:
        """Send a batch of calls; the callback is called with its future when it is over."""
        session = self._session
        future = session.submit_with(func, _options(func), (), {})
        session.flush()
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._over)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _over(self, future: Any) -> None:
        with self._lock:
            self._futures.discard(future)

    def retrieve_result_callback(self, out: Future) -> Any:
        """The results of a batch that is over, or its exception, raised."""
        try:
            return out.result()
        except CancelledError as error:
            raise QnbError(f"task {out.id} was cancelled") from error

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """What a call uses that is parallel itself: lanes are there for all already."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed, or the user has interrupted: what has not begun never does."""
        with self._lock:
            futures, self._futures = list(self._futures), set()
        spans = []
        for future in futures:
            run, _, index = future.id.rpartition(":")
            spans.append((run, int(index), 1))
        if spans:
            self._session.cancel_calls(spans)

    def terminate(self) -> None:
        """A Parallel is over: the session stays."""
        self.reset_batch_stats()


def _options(func: Any) -> TaskOptions:
    """Named after the function of the batch's first call."""
    try:
        name = getattr(func.items[0][0], "__qualname__", None)
    except (AttributeError, IndexError, TypeError):
        name = None
    return TaskOptions(name=name or "joblib")


joblib.register_parallel_backend(NAME, QnbBackend)
