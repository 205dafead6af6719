"""Views of what nobody tells of by itself: they look, once a second at most, while somebody looks at them."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from qnb.errors import QnbError
from qnb.notebook.live import Buffers, LiveView, Message

# Brokers that charge for every request are asked more seldom.
_METERED = ("sqs", "pubsub")
METERED_SECONDS = 5.0


class PolledView(LiveView):
    """Subclasses `look`; what it gives is sent whole when it has changed."""

    period: ClassVar[float] = 1.0

    def __init__(self, session: Any, state: dict[str, Any]) -> None:
        super().__init__()
        self.session = session
        self.state = state
        self.fresh = False  # whether the state is of now, so that there is no need to look at once
        self._seconds = METERED_SECONDS if session and session.broker.scheme in _METERED else self.period
        self._looking = False
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._alarm = threading.Event()

    def look(self) -> dict[str, Any]:
        """The state of now; may talk to the broker, and raise QnbError."""
        raise NotImplementedError

    def open(self) -> None:
        super().open()
        self.watched(True)

    def first(self) -> Message:
        return {"kind": "snapshot", "seq": 0, "state": self.state}

    def whole(self) -> tuple[Message, Buffers]:
        return {"state": self.state}, []

    def news(self) -> tuple[Message, Buffers] | None:
        return {"kind": "state", "state": self.state}, []

    def over(self) -> bool:
        return bool(self.session and self.session.closed)

    def watched(self, now: bool) -> None:
        with self._thread_lock:
            self._looking = now
            if now and self._thread is None and not self.freed.is_set():
                self._thread = threading.Thread(target=self._run, name=f"qnb-{self.entry}", daemon=True)
                self._thread.start()
        if not now:
            self._alarm.set()

    def change(self, state: dict[str, Any]) -> None:
        """Show this from now on."""
        if state != self.state:
            self.state = state
            self.touch()

    def look_again(self) -> None:
        """Look at once: something has been done."""
        self._alarm.set()

    def _run(self) -> None:
        while self._goes_on():
            if not self.fresh:
                self._try()
            self.fresh = False
            self._alarm.wait(self._seconds)
            self._alarm.clear()

    def _try(self) -> None:
        try:
            self.change(self.look())
        except QnbError as error:
            self.change({**self.state, "trouble": str(error)})
        except Exception as error:
            if not self.over():  # closed while it was being asked
                self.change({**self.state, "trouble": f"{type(error).__name__}: {error}"})

    def _goes_on(self) -> bool:
        with self._thread_lock:
            if self._looking and not self.freed.is_set() and not self.over():
                return True
            self._thread = None
        if self.over():
            self.change({**self.state, "trouble": "This session is closed."})
        return False


def answered(replies: dict[str, Any], worker: str) -> Any:
    """What a worker answered; QnbError when it did not, or could not do it."""
    if worker not in replies:
        raise QnbError(f"{worker} did not answer within a second: it may have ended, or have another key")
    reply = replies[worker]
    if isinstance(reply, dict) and "error" in reply:
        raise QnbError(f"{worker}: {reply['error']}")
    return reply
