"""The live view of the stream of events."""

from __future__ import annotations

import time
from typing import Any

from qnb.message import Event
from qnb.monitor.events import Events
from qnb.notebook import plain
from qnb.notebook.live import Buffers, LiveView, Message, present
from qnb.notebook.snapshot import short
from qnb.notebook.words import count

# Of a flood, so many a message are shown; the rest is counted.
AT_ONCE, KEPT, SAVED = 100, 500, 20


def display(events: Events) -> None:
    """Show a stream: live in a notebook, as text elsewhere."""
    present(
        lambda: EventsView(events),
        lambda view: isinstance(view, EventsView) and view.events is events,
        lambda: repr(events),
    )


class EventsView(LiveView):
    """A stream of events on stage."""

    entry = "events"

    def __init__(self, events: Events) -> None:
        super().__init__()
        self.events: Events | None = events
        self._sent = 0
        events.on_event.append(self.touch)

    def _latest(self, most: int) -> tuple[int, list[list[Any]]]:
        if self.events is None:
            return self._sent, []
        total, latest = self.events.latest(most)
        return total, [_wire(event) for event in latest]

    def first(self) -> Message:
        total, rows = self._latest(SAVED)
        return {"kind": "snapshot", "seq": 0, "total": total, "events": rows}

    def whole(self) -> tuple[Message, Buffers]:
        self._sent, rows = self._latest(KEPT)
        return {"total": self._sent, "events": rows}, []

    def news(self) -> tuple[Message, Buffers] | None:
        before = self._sent
        self._sent, rows = self._latest(AT_ONCE)
        new = self._sent - before
        return ({"kind": "delta", "total": self._sent, "events": rows[-new:]}, []) if new else None

    def over(self) -> bool:
        return self.events is None or self.events.closed

    def bundle(self) -> dict[str, str]:
        total, rows = self._latest(SAVED)
        lines = [
            [time.strftime("%H:%M:%S", time.localtime(at)), kind, worker, what]
            for at, kind, worker, what in reversed(rows)
        ]
        note = f"the last {len(rows)} of {count(total)}" if total > len(rows) else ""
        title = "Events" if rows else "No events yet"
        return plain.bundle(title, ["at", "what", "worker", "about"], lines, note)

    def release(self) -> None:
        """The stream is forgotten: when nobody else has it, its watch ends."""
        if self.events is not None and self.touch in self.events.on_event:
            self.events.on_event.remove(self.touch)
        self.events = None


def _wire(event: Event) -> list[Any]:
    """[Unix time, kind, worker, what it is about]"""
    about = event.run
    if event.run:
        about = f"{event.run}:{event.first}"
        about += f"–{event.first + event.count - 1}" if event.count > 1 and not event.detail else ""
    words = [event.name, about, *(f"{name}={value}" for name, value in event.detail.items())]
    return [round(event.at, 3), event.kind, event.worker, short(" ".join(filter(None, words)), 120)]
