"""The live view of the stream of events."""

from __future__ import annotations

import time
from typing import Any

from IPython.core.getipython import get_ipython

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
        self._rested = False
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
        self._sent, rows = self._latest(KEPT if self._rested else AT_ONCE)
        self._rested = False
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

    def watched(self, now: bool) -> None:
        """Of what came while nobody looked, whoever looks again gets as much as one who is new."""
        self._rested = self._rested or not now

    def release(self) -> None:
        """The stream is forgotten: when nobody else has it, its watch ends."""
        events, self.events = self.events, None
        if events is not None and self.touch in events.on_event:
            events.on_event.remove(self.touch)
        if events is not None and not events.closed:
            _forget_value(events)


def _forget_value(value: object) -> None:
    """Take what a cell gave out of `Out`, `_` and the like. IPython keeps a thousand of them: a cell that was run
    anew would have all its streams watch on."""
    shell: Any = get_ipython()
    if shell is None:
        return
    # In place, for this is not the main thread: somebody may be going through them.
    hidden, outputs = shell.user_ns_hidden, shell.user_ns.get("_oh", {})
    for name in [name for name, held in list(hidden.items()) if held is value]:
        hidden[name] = None
        if shell.user_ns.get(name) is value:
            shell.user_ns[name] = None
    for number in [number for number, held in list(outputs.items()) if held is value]:
        outputs[number] = None
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name, None) is value:
            setattr(shell.displayhook, name, None)
    result = shell.last_execution_result
    if result is not None and result.result is value:
        result.result = None


def _wire(event: Event) -> list[Any]:
    """[Unix time, kind, worker, what it is about]"""
    about = event.run
    if event.run:
        about = f"{event.run}:{event.first}"
        about += f"–{event.first + event.count - 1}" if event.count > 1 and not event.detail else ""
    words = [event.name, about, *(f"{name}={value}" for name, value in event.detail.items())]
    return [round(event.at, 3), event.kind, event.worker, short(" ".join(filter(None, words)), 120)]
