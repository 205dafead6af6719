"""The only crossing from threads to widgets: one thread draws every view, at most ten times a second each.

Whatever changes a view's object marks the view and calls `wake`, which costs next to nothing. The thread sleeps
while there is nothing to draw, and ends when there is no view left.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

logger = logging.getLogger(__name__)
PERIOD = 0.1


class View(Protocol):
    """Something drawn. Both methods are called on the stage's thread alone."""

    def draw(self) -> bool:
        """Send what changed. False when there will be nothing more: the stage forgets the view."""

    def due(self) -> float | None:
        """`time.monotonic()` by which it wants to be drawn even if nothing changes; None for never."""


class Stage:
    """Draws views from one background thread."""

    def __init__(self, period: float = PERIOD) -> None:
        self._period = period
        self._views: list[View] = []
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, view: View) -> None:
        """Draw this view from now on."""
        with self._lock:
            self._views.append(view)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qnb-stage", daemon=True)
                self._thread.start()
        self.wake()

    def wake(self) -> None:
        """A view has something to draw. Cheap, from any thread."""
        if not self._news.is_set():
            self._news.set()

    def views(self) -> list[View]:
        """The views on stage."""
        with self._lock:
            return list(self._views)

    def hurry(self) -> None:
        """Draw now, also within a period of the last time: somebody waits for it."""
        self._hurry.set()
        self.wake()

    def _run(self) -> None:
        while views := self._next_round():
            self._news.wait(self._patience(views))
            self._news.clear()
            for view in self.views():
                if not self._draw(view):
                    with self._lock:
                        self._views.remove(view)
            self._hurry.wait(self._period)
            self._hurry.clear()

    def _next_round(self) -> list[View]:
        with self._lock:
            if not self._views:
                self._thread = None
            return list(self._views)

    @staticmethod
    def _patience(views: list[View]) -> float | None:
        dues = [due for view in views if (due := view.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    @staticmethod
    def _draw(view: View) -> bool:
        try:
            return view.draw()
        except Exception:
            logger.exception("a view could not be drawn and is given up")
            return False


STAGE = Stage()
