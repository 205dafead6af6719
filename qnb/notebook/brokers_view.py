"""The live view of brokers against their features, with a button that measures them on the live server."""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from qnb.features import Limits
from qnb.monitor.brokers import BrokerRow, BrokerTable, limit_text
from qnb.notebook.live import present
from qnb.notebook.polled import PolledView

if TYPE_CHECKING:
    from qnb.session.session import Session

# What can be probed without a server that somebody else runs.
_OWN = {"memory": "memory:"}
_LIMITS = [one.name for one in fields(Limits)]


def display(table: BrokerTable) -> None:
    """Show the table: with its probe in a notebook, as text elsewhere."""
    present(
        lambda: BrokersView(table),
        lambda view: isinstance(view, BrokersView) and view.table is table,
        lambda: repr(table),
    )


class BrokersView(PolledView):
    """A table of brokers on stage. It looks at servers when it is asked to, and never by itself."""

    entry = "brokers"
    asks = ("probe",)

    def __init__(self, table: BrokerTable) -> None:
        super().__init__(None, {})
        self.table = table
        self._probing: set[int] = set()
        self._guard = threading.Lock()
        self.state = self.look()

    def watched(self, now: bool) -> None:
        """Nothing changes but by a probe."""

    def look(self) -> dict[str, Any]:
        rows = list(self.table)
        return {
            "features": list(rows[0].features.table()),
            "brokers": [self._broker(place, row) for place, row in enumerate(rows)],
        }

    def _broker(self, place: int, row: BrokerRow) -> dict[str, Any]:
        if row.url is None and (session := _current(row.scheme)) is not None:
            row = replace(row, url=session.broker_url, reachable=True)
        return {
            "scheme": row.scheme,
            "url": row.url,
            "support": {name: support.value for name, support in row.features.table().items()},
            "limits": [[name, limit_text(name, getattr(row.features.limits, name))] for name in _LIMITS],
            "client": row.client,
            "installed": row.installed,
            "reachable": row.reachable,
            "server": row.server,
            "seen_on": row.seen_on,
            "measured": {one.feature: [one.worked, round(one.seconds, 3), one.said] for one in row.measured},
            "probe": row.installed and self._url(place, row) is not None,
            "probing": place in self._probing,
        }

    def bundle(self) -> dict[str, str]:
        return {"text/plain": repr(self.table), "text/html": self.table._repr_html_()}

    def ask_probe(self, place: int) -> str:
        """Measure every feature on the server of one row, on queues of its own; under 10 seconds."""
        row = list(self.table)[place]
        url = self._url(place, row)
        self._mark(place, True)
        try:
            found = self.table.look(place, url)
        finally:
            self._mark(place, False)
        if not found.reachable:
            return f"{row.scheme}: {found.said}"
        worked = [one.worked for one in found.measured]
        untried = worked.count(None)
        rest = f", {untried} not tried" if untried else ""
        return f"{row.scheme}: {worked.count(True)} features work, {worked.count(False)} fail{rest}."

    def _mark(self, place: int, on: bool) -> None:
        with self._guard:
            (self._probing.add if on else self._probing.discard)(place)
            self.change(self.look())

    def _url(self, place: int, row: BrokerRow) -> str | None:
        """The server of a row: the one that was named, or that of the current session when it is of this kind."""
        if (named := self.table.url(place)) is not None:
            return named
        session = _current(row.scheme)
        return _OWN.get(row.scheme) if session is None else session.full_broker_url


def _current(scheme: str) -> Session | None:
    """The current session, when it is on such a broker."""
    from qnb.session.session import current_session

    session = current_session()
    return session if session is not None and session.broker.scheme == scheme else None
