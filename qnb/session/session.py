"""The Session: turns calls into messages, and outcomes into futures, batches and tables."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import itertools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any

from qnb import registry, settings
from qnb.brokers.base import Presence
from qnb.codec.archives import Shipments
from qnb.codec.functions import Named, Shipper, parameter_names
from qnb.codec.kept import Kept
from qnb.codec.parts import get_object, put_sealed
from qnb.codec.plain import require_plain
from qnb.codec.references import Referable
from qnb.codec.signing import BLOB, ENCRYPTED, Signer
from qnb.errors import ConfigurationError, QnbError, ResultsNotKept
from qnb.message import DEFAULT_QUEUE, SESSION_PREFIX, WORKER_PREFIX, Blob, Frame, Function
from qnb.session.aside import Aside
from qnb.session.batch import Batch
from qnb.session.calls import as_function, pack_call
from qnb.session.collector import Collector
from qnb.session.future import Future
from qnb.session.options import TaskOptions
from qnb.session.outbox import Outbox
from qnb.session.publisher import Publisher
from qnb.session.revocations import Revocations
from qnb.session.runs import Recorder
from qnb.session.sizes import Sizes
from qnb.session.stored import StoredBlobs
from qnb.session.task import Task
from qnb.session.watch import Watch

if TYPE_CHECKING:
    import pandas as pd

    from qnb.monitor.brokers import FeatureTable
    from qnb.monitor.control import Control, Workers
    from qnb.monitor.events import Events
    from qnb.session.schedules import Schedule, SchedulesTable

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # in which a second Ctrl-C cancels

_current: weakref.ref[Session] | None = None


def current_session() -> Session | None:
    """The Session made last, unless it is closed."""
    session = _current() if _current is not None else None
    return None if session is None or session.closed else session


class Session(concurrent.futures.Executor):
    """Runs functions as remote tasks over a broker.

    broker, backend: URLs; else QNB_BROKER, QNB_BACKEND; else an embedded file in ./.qnb/. workers: local worker
    processes; default: the number of cores when embedded, 0 otherwise. queue: where tasks go. key: the signing
    key; else QNB_KEY; else a per-user file. name: how the session is called. on_interrupt: "detach" or "cancel".
    encrypt: functions, arguments, results and notes are encrypted, too (AES-GCM; needs `pip install 'qnb[encrypt]'`).

    It is a concurrent.futures.Executor, and a context manager. Raises UnknownScheme, MissingLibrary,
    BrokerUnavailable, BackendUnavailable or AccessDenied, each within 5 seconds and with the remedy.
    """

    def __init__(
        self,
        broker: str | None = None,
        backend: str | None = None,
        *,
        workers: int | None = None,
        queue: str = DEFAULT_QUEUE,
        key: str | bytes | None = None,
        name: str | None = None,
        on_interrupt: str = "detach",
        encrypt: bool = False,
    ) -> None:
        if on_interrupt not in ("detach", "cancel"):
            raise ConfigurationError(f"on_interrupt={on_interrupt!r}: give 'detach' or 'cancel'")
        if workers is not None and workers < 0:
            raise ConfigurationError(f"workers={workers}: give 0 or more")
        url = settings.absolute_url(settings.broker_url(broker))
        registry.find("broker", url)  # a misspelt scheme is told as such, before anything follows from it
        asked = settings.backend_url(backend)
        backend_url = settings.absolute_url(asked or registry.partner_url(url))
        if not asked and backend_url == "rpc:":
            _warn_of_rpc(url)
        secret = settings.load_key(key)
        self._url = url
        self.closed = self._shut = False
        self.queue = queue
        self.on_interrupt = on_interrupt
        self.id = os.urandom(5).hex()
        self.name = name or self.id
        self.peer = SESSION_PREFIX + self.id
        self.signer = Signer(secret, encrypt=encrypt)
        self._run_mark = ENCRYPTED if encrypt else ""
        self._connect(url, backend_url)
        self._equip()
        embedded = self.broker.scheme in ("sqlite", "memory")
        count = workers if workers is not None else settings.cpu_count() if embedded else 0
        if embedded or count:
            self.inbox.beat()  # local workers look for sessions, and end when there are none
        self._start_workers = self._starter((url, backend_url), secret, count)
        self._local_count = count
        self._workers: Any = self._start_workers() if count else None
        self.outbox = Outbox(self, beats=embedded or count > 0)
        global _current
        _current = weakref.ref(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _connect(self, url: str, backend_url: str) -> None:
        with contextlib.ExitStack() as undo:
            self.broker = registry.open_broker(url)
            undo.callback(self.broker.close)
            self.backend = registry.open_backend(backend_url)
            undo.callback(self.backend.close)
            self.bus = self.broker.bus()
            self.inbox = self.bus.join(self.peer)
            undo.pop_all()

    def _equip(self) -> None:
        watch = Watch(self)
        self.collector = Collector(self.inbox, self.bus, self.backend, self.signer, watch.look)
        self.collector.ask_again = watch.ask_again
        stored = StoredBlobs(self.backend)
        self.aside = Aside(self.backend, self.signer, self.broker.features.limits.message_bytes, stored)
        self.sizes = Sizes()
        self.publisher = Publisher(self.broker, self.backend, self.signer, stored, self._publish_failed)
        self.recorder = Recorder(self)
        self.revocations = Revocations(self)
        self.batches: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()
        self.attached: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()  # streams of its own
        self.keyed: dict[str, Batch] = {}  # by run: of the latest submits with a key
        self.attaching = threading.Lock()
        put = self._put_archive if self.backend.blobs else None
        self._shipments = Shipments(put, stored.seconds, at_home=self.broker.scheme == "memory")
        self._shipper = Shipper(self._shipments)
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def _starter(self, urls: tuple[str, str], secret: bytes, count: int) -> Callable[[], Any]:
        def start_workers() -> Any:  # no partial: its repr would show the key
            from qnb.session import local  # and with it subprocess, which most sessions never need

            return local.start(self.broker, self.backend, urls, secret, self.queue, count)

        return start_workers

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"queue {self.queue!r}"
        return f"<qnb.Session {self.broker_url}, results in {self.backend_url}, {state}>"

    def _ipython_display_(self) -> None:
        from qnb.notebook.session_view import display

        display(self)

    def _display_(self) -> object:
        """As marimo asks for it."""
        from qnb.notebook.session_view import SessionView

        return SessionView(self).widget()

    @property
    def broker_url(self) -> str:
        """The broker's URL, without password."""
        return str(self.broker.url)

    @property
    def full_broker_url(self) -> str:
        """The same with its password, for those who connect once more; never to be shown."""
        return self._url

    @property
    def local_workers(self) -> int:
        """How many local workers this session has started."""
        return self._local_count if self._workers is not None else 0

    def revive_workers(self) -> None:
        """Start local workers anew when they have died."""
        if self._workers is not None and not self._workers.alive and not self.closed:
            log.warning("the local workers of session %s have died; starting others", self.name)
            self._workers = self._start_workers()

    @property
    def backend_url(self) -> str:
        """The backend's URL, without password."""
        return str(self.backend.url)

    # Tasks ---------------------------------------------------------------------------------------------------

    def task(self, function: Callable[..., Any] | str | None = None, /, **options: Any) -> Any:
        """Make a function a Task of this session; `@session.task` or `@session.task(retries=3, …)`."""
        chosen = TaskOptions().change(**options)

        def make(function: Callable[..., Any] | str) -> Task:
            return Task(as_function(function), chosen, self)

        return make if function is None else make(function)

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Future:
        """Run fn(*args, **kwargs) on a worker. CannotPickle names what cannot travel.

        "module.function" is a function that workers import and this process need not have; its arguments are plain.
        """
        if type(fn) is Task:
            return self.submit_with(fn.function, fn.task_options, args, kwargs)
        return self.submit_with(as_function(fn), _DEFAULTS, args, kwargs)

    def submit_with(
        self, function: Callable[..., Any], options: TaskOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future:
        """`submit` with options."""
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown: this session is closed")
        if options.key is not None:
            from qnb.session import keyed

            return keyed.submit(self, function, options, args, kwargs)
        stream = self.outbox.stream(self._shipper.ship(function), options)
        if stream.origin is None:
            stream.origin = function
        call = pack_call(self.aside, stream.function, function, args, kwargs)
        self.collector.expect(stream, 1)
        future, waiting = stream.add(call)
        self.outbox.added(waiting)
        return future

    def map(
        self,
        fn: Callable[..., Any] | str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Batch:
        """Run fn on each item, or on the items of several iterables side by side (as long as the shortest).

        timeout: seconds from now that iterating may take. chunksize: calls a message; by default as measured.
        """
        rows = list(zip(*(each[:] if isinstance(each, Batch) else each for each in iterables), strict=False))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in iterables]
        return self._launch("map", fn, columns, count=len(rows), timeout=timeout, chunksize=chunksize)

    def every(
        self,
        when: str | float | timedelta,
        fn: Callable[..., Any] | str,
        /,
        *args: Any,
        name: str | None = None,
        tz: str | tzinfo | None = None,
        **kwargs: Any,
    ) -> Schedule:
        """Run fn(*args, **kwargs) every "10m", "1h30m" or as a cron expression says ("0 7 * * mon-fri").

        It is kept in the backend, and fired once however many workers there are, also when this session is gone; ticks
        for which no worker was there are fired once, late. `tz`: the zone of the cron expression, else this machine's.
        Another schedule of the same `name`, or the same call at the same times, gives way. Unsupported over `rpc:`.
        """
        from qnb.session.schedules import every

        return every(self, when, fn, (args, kwargs), name, tz)

    def schedules(self) -> SchedulesTable:
        """All schedules in the backend, of all sessions; `.df` is a DataFrame, `["name"].cancel()` ends one."""
        from qnb.session.schedules import table

        return table(self.backend, self.signer, self)

    def starmap(self, fn: Callable[..., Any] | str, tuples: Iterable[Iterable[Any]]) -> Batch:
        """Run fn(*arguments) for each tuple of arguments; all of one length."""
        rows = [tuple(row) for row in tuples]
        if len({len(row) for row in rows}) > 1:
            raise ConfigurationError("starmap: the tuples have different lengths; give each the same arguments")
        return self._launch("starmap", fn, [list(column) for column in zip(*rows, strict=True)], count=len(rows))

    def sweep(self, fn: Callable[..., Any] | str, grid: Mapping[str, Iterable[Any]], /, **fixed: Any) -> Batch:
        """Run fn for every combination of the grid's values, passed by name; `fixed` goes to every call."""
        names = tuple(grid)
        rows = list(itertools.product(*(list(values) for values in grid.values())))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
        inner = as_function(fn.function if isinstance(fn, Task) else fn)
        if fixed and (isinstance(inner, Named) or any(isinstance(value, Referable) for value in fixed.values())):
            names, columns = (*names, *fixed), [*columns, *([value] * len(rows) for value in fixed.values())]
        elif fixed:
            bound: Any = partial(inner, **fixed)
            fn = Task(bound, fn.task_options, self) if isinstance(fn, Task) else bound
        return self._launch("sweep", fn, columns, names, count=len(rows))

    def _launch(
        self,
        kind: str,
        fn: Callable[..., Any] | str,
        columns: list[list[Any]],
        names: tuple[str, ...] = (),
        *,
        count: int,
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Batch:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown: this session is closed")
        if chunksize is not None and chunksize < 1:
            raise ConfigurationError(f"chunksize={chunksize!r}: give 1 or more calls a message")
        options = fn.task_options if isinstance(fn, Task) else _DEFAULTS
        if options.key is not None:
            raise ConfigurationError("key= names one call: give it to submit, as in f.options(key=…).submit(…)")
        function = as_function(fn.function if isinstance(fn, Task) else fn)
        if isinstance(function, Named):
            require_plain(columns, names)
        shipped = self.ship_function(function)
        labels = names or parameter_names(function, len(columns))
        batch = Batch(self, self.new_run(), shipped, list(zip(labels, columns, strict=True)), count, options)
        batch.names, batch.by_name = names, isinstance(function, Named)
        batch.timeout = timeout
        self.launch(batch, kind, function, chunksize)
        return batch

    def ship_function(self, function: Callable[..., Any]) -> Function:
        """The current version of a function, as it travels."""
        return self._shipper.ship(function, look=True)

    def launch(self, batch: Batch, kind: str, function: Any, chunksize: int | None = None) -> None:
        """Send a batch, and write it down."""
        self.batches[batch.run] = batch
        self.recorder.began(batch, kind, function)
        self.send(batch, chunksize)

    def send(self, batch: Batch, chunksize: int | None = None) -> None:
        """Send a batch that is written down."""
        if len(batch):
            self.collector.expect(batch, len(batch))
            self.outbox.send_batch(batch, chunksize)

    def repeat(self, batch: Batch, indices: list[int]) -> Batch:
        """A new batch of some calls of another."""
        from qnb.session.attach import load_code

        if indices and batch.incomplete:
            raise QnbError(f"the arguments of run {batch.run} were not kept: submit these calls again where they are")
        again = Batch(
            self,
            self.new_run(),
            load_code(self, batch.function),
            [(name, [values[i] for i in indices]) for name, values in batch.parameters],
            len(indices),
            batch.options,
        )
        again.names, again.by_name = batch.names, batch.by_name
        self.launch(again, "retry", None)
        return again

    def ship(self, module: Any) -> None:
        """Send a module that workers do not have: a module, a package, the name of one, a folder or a .py file.

        Its files travel with every function from now on, and anew when they change: what runs is what they say.
        A folder without `__init__.py` is one of modules, each imported by its own name.
        """
        self._shipments.add(module)

    def ships_now(self) -> set[str]:
        """The archives of what is shipped, as its files are now, by hash."""
        return {archive.hash for archive in self._shipments.current(look=True)}

    def _put_archive(self, name: str, data: bytes) -> None:
        put_sealed(self.backend, self.signer, name, BLOB, data)

    # Sending -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send every submit that still waits for company."""
        self.outbox.flush()

    def new_run(self) -> str:
        """An id for a run: the session's and a number."""
        return f"{self.id}-{next(self._numbers)}{self._run_mark}"

    def _publish_failed(self, frame: Frame, error: BaseException) -> None:
        sink: Any = self.collector.sinks.get(frame.run)
        if sink is not None:
            self.collector.settled(sink, sink.fail(frame.first, frame.count, error))
            if sink.options.key is not None:
                from qnb.session import keyed

                try:
                    keyed.release(self, frame.run)
                except QnbError as fault:
                    log.warning("whoever submits with the key of run %s waits for it in vain: %s", frame.run, fault)

    # Waiting -------------------------------------------------------------------------------------------------

    def wait_for(self, done: Callable[[], bool], condition: threading.Condition, timeout: float | None) -> bool:
        """Wait until `done()`, reading outcomes meanwhile; False when it is not after `timeout` seconds."""
        if self.closed and not done():
            raise QnbError("this session is closed: what was not over then goes on without it")
        return self.collector.wait(done, condition, timeout, self.outbox.flush_and_receive)

    def interrupted(self, cancel: Callable[[], object], what: str) -> None:
        """Ctrl-C while somebody waited: say what becomes of it. A second one within a second cancels it anyway."""
        if self.on_interrupt == "cancel":
            cancel()
            print(f"{what} is cancelled; what runs goes on to its end", file=sys.stderr)
            return
        try:
            print(f"{what} goes on; interrupt once more within a second to cancel it", file=sys.stderr, flush=True)
            time.sleep(AGAIN_SECONDS)
        except KeyboardInterrupt:
            cancel()
            print(f"{what} is cancelled; what runs goes on to its end", file=sys.stderr)

    def fetch(self, described: bytes | None, blob: Blob) -> Any:
        """A result that was put aside; a handle for one that is to stay there."""
        load = partial(get_object, self.backend.get_blob, self.signer)
        return load(blob) if described is None else Kept(described, blob, self.backend, load)

    def learn(self, function: bytes, seconds: float, calls: int) -> None:
        """So many calls of a function took so long."""
        self.sizes.learn(function, seconds, calls)

    # Control -------------------------------------------------------------------------------------------------

    def cancel_calls(self, spans: Sequence[tuple[str, int, int]], terminate: bool = False) -> None:
        """Make sure that these calls never start; with `terminate` kill those that run."""
        self.revocations.add(spans, terminate)

    def state(self, id: str) -> str:
        """The state of a task by its id, of another session too once it is over; "unknown" when nobody knows it."""
        from qnb.session.lookup import state_of

        return state_of(id, self.collector.sinks, self.backend, self.signer)

    # Runs ----------------------------------------------------------------------------------------------------

    def runs(self, limit: int = 100) -> pd.DataFrame:
        """The newest runs in the backend, of all sessions: kind, name, version, calls, a count for each way to end,
        open, created_at (UTC), session; index = run id."""
        from qnb.session.history import table

        return table(self.backend, self.signer, limit)

    def attach(self, run: str) -> Batch:
        """The Batch of a run, whoever made it and whenever: it fills with what there is and goes on live.

        It can be cancelled and retried. UnknownTask when the backend has no such run.
        """
        from qnb.session.attach import attach

        return attach(self, run)

    def newest_run(self) -> str | None:
        """The id of the newest map, starmap, sweep or retry of this session; None when there was none."""
        return self.recorder.newest

    def forget(self, run: str) -> None:
        """Remove a run, its outcomes and its arguments from the backend; its key, if it has one, is free again.

        What was put aside for its size may be others' too, and goes when it expires.
        """
        from qnb.session.history import forget

        forget(self, run)
        self.batches.pop(run, None)

    @property
    def control(self) -> Control:
        """Inspect and control the workers."""
        from qnb.monitor.control import Control

        return Control(self.bus, self.signer, self.peer, self.collector, self.backend.revoke_many)

    @property
    def workers(self) -> Workers:
        """The workers that are there now; `.df` is a DataFrame of them."""
        from qnb.monitor.control import Workers

        peers: Sequence[Presence] = self.bus.peers(WORKER_PREFIX)
        return Workers(peers, self)

    def features(self, probe: bool = False) -> FeatureTable:
        """What this session's broker can do: native, built or none, with its limits; `.df` is a DataFrame.

        probe: try each feature on the live server, on queues of its own; takes less than 10 seconds.
        """
        from qnb.monitor.brokers import features

        return features(self.broker, self._url, probe)

    def events(self, seconds: float | None = None) -> Events:
        """The live stream of what all workers do, for `seconds` or until it is closed: an iterator; `.df` is a table.

        Workers tell events only while somebody watches; a watcher that is gone costs nothing after ten seconds.
        """
        from qnb.monitor.events import Events

        return Events(self, seconds)

    # The end -------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in concurrent.futures: nothing more is taken; with `wait`, returns when all calls are over."""
        if self.closed:
            return
        self._shut = True
        self.flush()
        if cancel_futures:
            sinks: list[Any] = list(self.collector.sinks.values())
            own = [sink for sink in sinks if sink.run not in self.collector.followed]
            spans = [(sink.run, *span) for sink in own for span in sink.missing()]
            if spans:
                self.cancel_calls(spans)
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, name="qnb-shutdown", daemon=True).start()

    def _finish(self) -> None:
        try:
            self.collector.wait(lambda: self.closed or self.collector.own_pending <= 0, threading.Condition(), None)
        except QnbError:
            if not self.closed:  # closed meanwhile, and with it what was read from
                raise
        self.close()

    def close(self) -> None:
        """Leave: submits are sent, local workers finish what runs and end. What is queued at a broker stays there."""
        if self._workers is not None and self._workers.shares_broker and not self.closed:
            self.flush()
            self._workers.stop()  # while the broker that they share is open
        self._leave()
        if self._workers is not None:
            self._workers.stop()

    def _leave(self) -> None:
        with self._lock:
            if self.closed:
                return
            self._shut = self.closed = True
        try:
            self.flush()
        finally:
            self.outbox.close()
            self.recorder.close()
        if self.publisher.unsent:
            warnings.warn(f"{self.publisher.unsent} messages could not be sent: the broker is away", stacklevel=2)
            self.publisher.give_up(QnbError("the session was closed before the broker came back"))
        self.collector.close()
        self.inbox.close()
        self.backend.close()
        self.broker.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True)


_DEFAULTS = TaskOptions()
_warned_of_rpc = False


def _warn_of_rpc(url: str) -> None:
    global _warned_of_rpc
    if not _warned_of_rpc:
        _warned_of_rpc = True
        warnings.warn(
            f"results over {settings.redact(url)} travel to this session alone (rpc:) and do not outlive it: name a "
            "backend to keep them, as in Session(broker, backend='sqlite:')",
            ResultsNotKept,
            stacklevel=3,
        )


def _close_at_exit(reference: weakref.ref[Session]) -> None:
    session = reference()
    if session is not None and not session.closed:
        session._leave()  # the run outlives the kernel: local workers finish it, and end by themselves
