"""What workers tell while somebody watches: an iterator, and a table of the latest."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from qnb.errors import QnbError
from qnb.message import Event

if TYPE_CHECKING:
    import pandas as pd

    from qnb.session.session import Session

log = logging.getLogger(__name__)

RENEW_SECONDS = 3.0
WATCH_SECONDS = 10.0
KEPT = 10_000
_COLUMNS = ["at", "kind", "worker", "run", "first", "count", "name", "detail"]


class Events:
    """The live stream of events of all workers on the broker: iterate over it, or look at `.df`.

    Watching is a lease that this object renews: once it is closed, or its kernel is gone, workers tell nothing more.
    Iterating ends after `seconds`, or when it is closed. A context manager.
    """

    def __init__(self, session: Session, seconds: float | None = None) -> None:
        self._session = session
        self._end = float("inf") if seconds is None else time.monotonic() + seconds
        self._latest: deque[Event] = deque(maxlen=KEPT)
        self._new: deque[Event] = deque(maxlen=KEPT)
        self.total = 0  # events since it was opened
        self.on_event: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._renew()
        self._tell = _tell_weakly(weakref.WeakMethod(self._take))
        session.collector.on_event.append(self._tell)
        session.collector.listen(+1)
        threading.Thread(target=_keep, args=(weakref.ref(self), self._closed), name="qnb-events", daemon=True).start()

    def _renew(self) -> None:
        arguments = {"peer": self._session.peer, "seconds": WATCH_SECONDS}
        self._session.control.tell([("watch", arguments)])

    def _still_wanted(self) -> bool:
        """Renew the watch, so that workers that come later are told too; False when it is over."""
        if self._session.closed or time.monotonic() > self._end:
            self.close()
            return False
        try:
            self._renew()
        except QnbError as error:  # the server is away: workers cannot tell anything now either
            log.info("the watch could not be renewed: %s", error)
        return True

    def _take(self, event: Event) -> None:
        with self._changed:
            self.total += 1
            self._latest.append(event)
            self._new.append(event)
            self._changed.notify_all()
        for tell in list(self.on_event):
            tell()

    def latest(self, count: int) -> tuple[int, list[Event]]:
        """How many there have been, and the last of them, oldest first."""
        with self._changed:
            skipped = max(0, len(self._latest) - count)
            return self.total, list(islice(self._latest, skipped, None))

    @property
    def session(self) -> Session:
        """Whose workers tell."""
        return self._session

    @property
    def closed(self) -> bool:
        """Whether the watch is over."""
        return self._closed.is_set()

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._new:
                    left = self._end - time.monotonic()
                    if self._closed.is_set() or left <= 0:
                        return
                    self._changed.wait(min(left, 1.0))
                event = self._new.popleft()
            yield event

    def close(self) -> None:
        """Watch no more."""
        with self._changed:
            if self._closed.is_set():
                return
            self._closed.set()
            self._changed.notify_all()
        self._session.collector.on_event.remove(self._tell)
        self._session.collector.listen(-1)

    def __del__(self) -> None:
        if hasattr(self, "_tell") and not self._session.closed:
            self.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def df(self) -> pd.DataFrame:
        """The latest events, at most 10,000: at (UTC), kind, worker, run, first, count, name, detail."""
        import pandas as pd

        with self._changed:
            rows = [msgspec.to_builtins(event) for event in self._latest]
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
        return frame

    def _ipython_display_(self) -> None:
        from qnb.notebook.events_view import display

        display(self)

    def _display_(self) -> object:
        """As marimo asks for it."""
        from qnb.notebook.events_view import EventsView

        return EventsView(self).widget()

    def __repr__(self) -> str:
        return repr(self.df) if self._latest else "no events yet"

    def _repr_html_(self) -> str:
        return str(self.df.tail(50)._repr_html_()) if self._latest else "<p>No events yet.</p>"


def _tell_weakly(take: weakref.WeakMethod[Callable[[Event], None]]) -> Callable[[Event], None]:
    """The session must not keep a stream alive that nobody looks at any more."""

    def tell(event: Event) -> None:
        method = take()
        if method is not None:
            method(event)

    return tell


def _keep(stream: weakref.ref[Events], closed: threading.Event) -> None:
    while not closed.wait(RENEW_SECONDS):
        events = stream()
        if events is None or not events._still_wanted():
            return
        del events
