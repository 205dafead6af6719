"""The brokers against their features: as the conformance suite saw them, and as this machine has them."""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from qnb import registry
from qnb.errors import ConfigurationError, QnbError
from qnb.features import Features, Limits, Support
from qnb.monitor.probe import Measured, probe
from qnb.settings import parse_url, redact

if TYPE_CHECKING:
    import pandas as pd

MARKS = {Support.NATIVE: "● native", Support.BUILT: "◐ built", Support.NONE: "○ none"}
_CLIENTS = {
    "redis": "hiredis", "rabbitmq": "pika", "sqs": "boto3", "kafka": "confluent_kafka", "zookeeper": "kazoo",
    "pubsub": "google.cloud.pubsub",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BrokerRow:
    """One broker. `reachable` is None when no server was named; `measured` is empty without `probe`."""

    scheme: str
    features: Features
    seen_on: str
    installed: bool
    extra: str | None
    url: str | None = None
    reachable: bool | None = None
    said: str = ""
    measured: Sequence[Measured] = ()

    @property
    def client(self) -> str:
        """In words: installed, or the line that brings it."""
        return "installed" if self.installed else f"pip install 'qnb[{self.extra}]'"

    @property
    def server(self) -> str:
        """In words: whether it answers."""
        return {None: "not asked", True: "reachable", False: f"no: {self.said}"}[self.reachable]


@cache
def conformance() -> dict[str, dict[str, Any]]:
    """Scheme → what the conformance suite last saw: features, limits, and the server it saw them on."""
    text = resources.files("qnb.monitor").joinpath("conformance.json").read_text()
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def features_of(scheme: str) -> Features:
    """The features of one of qnb's own brokers, without loading its client library."""
    seen = conformance()[scheme]
    return Features(
        **{name: Support(value) for name, value in seen["features"].items()}, limits=Limits(**seen["limits"])
    )


def as_json(features: Features) -> dict[str, Any]:
    """The form in which features are kept in conformance.json."""
    return {
        "features": {name: support.value for name, support in features.table().items()},
        "limits": asdict(features.limits),
    }


def brokers(*urls: str, probe: bool = False) -> BrokerTable:
    """All brokers that qnb has, against their features. URLs name servers to look at: is it reachable, and with
    `probe=True`, does each feature work there now (under 10 seconds a server, on queues of its own)?"""
    named: dict[str, list[str | None]] = {scheme: [] for scheme in conformance()}
    for url in urls:
        named.setdefault(_base(url), []).append(url)
    asked = [(scheme, url) for scheme, found in named.items() for url in found or [None]]
    return BrokerTable([_row(scheme, url, probe) for scheme, url in asked], [url for _, url in asked])


def _base(url: str) -> str:
    """rediss, redis+sentinel … are told under redis, amqps under amqp: one adapter, one row."""
    scheme = parse_url(url).scheme
    target = registry.BROKERS.get(scheme)
    return next((known for known in conformance() if registry.BROKERS[known] == target), scheme)


def _row(scheme: str, url: str | None, measure: bool) -> BrokerRow:
    extra = registry.EXTRAS.get(scheme)
    library = _CLIENTS.get(extra or "")
    installed = library is None or _is_installed(library)
    if scheme in conformance():
        features, seen_on = features_of(scheme), conformance()[scheme]["server"]
    else:
        features, seen_on = registry.find("broker", url or f"{scheme}:").features, ""
    if url is None:
        return BrokerRow(scheme, features, seen_on, installed, extra)
    measured: Sequence[Measured] = ()
    reachable, said = True, ""
    try:
        if measure:
            measured = probe(url)
        else:
            registry.open_broker(url).close()
    except QnbError as error:
        reachable, said = False, str(error)
    return BrokerRow(scheme, features, seen_on, installed, extra, redact(url), reachable, said, measured)


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def limit_text(name: str, value: Any) -> str:
    """A limit as people read it."""
    if value is None:
        return "no limit"
    if name == "lease_min_seconds" and not value:
        return "any"
    if name == "message_bytes":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 1024:.0f} KiB"
    if name.endswith("seconds"):
        for unit, seconds in (("days", 86400), ("hours", 3600)):
            if value >= seconds and value % seconds == 0:
                return f"{value // seconds:g} {unit}"
        return f"{value:,.0f} s" if value == int(value) else f"{value:g} s"
    return str(value)


class BrokerTable:
    """A row a broker: what qnb.brokers() gives. `.df` is a DataFrame; `.measured` what a probe saw."""

    def __init__(self, rows: Sequence[BrokerRow], urls: Sequence[str | None] = ()) -> None:
        self._rows = list(rows)
        self._urls = list(urls)  # with their passwords: for a probe, and never shown

    def url(self, place: int) -> str | None:
        """The server that a row is about, with its password."""
        return self._urls[place] if place < len(self._urls) else None

    def look(self, place: int, url: str | None = None, measure: bool = True) -> BrokerRow:
        """Look at a server again, and measure: the one that row `place` is about, or one at `url`. It takes the place
        of the row. ConfigurationError when no server is known for it."""
        row = self._rows[place]
        known = url or self.url(place)
        if known is None:
            example = f"qnb.brokers('{row.scheme}://host')"
            raise ConfigurationError(f"no server is named for {row.scheme}: {example} names one")
        self._rows[place] = found = _row(row.scheme, known, measure)
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[BrokerRow]:
        return iter(self._rows)

    @property
    def df(self) -> pd.DataFrame:
        """One row a broker, indexed by scheme: each feature as native, built or none, each limit, client, server."""
        import pandas as pd

        records = [
            {
                "broker": row.scheme,
                **{name: support.value for name, support in row.features.table().items()},
                **asdict(row.features.limits),
                "client": row.client,
                "server": row.server,
            }
            for row in self._rows
        ]
        return pd.DataFrame(records).set_index("broker")

    @property
    def measured(self) -> pd.DataFrame:
        """One row a feature that was probed: broker, feature, support, worked, seconds, said."""
        import pandas as pd

        columns = ["broker", "feature", "support", "worked", "seconds", "said"]
        records = [
            (row.scheme, one.feature, one.support.value, one.worked, one.seconds, one.said)
            for row in self._rows
            for one in row.measured
        ]
        return pd.DataFrame(records, columns=columns).set_index(["broker", "feature"])

    def _lines(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table as shown: a line a feature, a column a broker."""
        head = ["", *(row.scheme for row in self._rows)]
        lines = [
            [name.replace("_", " "), *(_cell(row, name) for row in self._rows)]
            for name in self._rows[0].features.table()
        ]
        for field in fields(Limits):
            cells = [limit_text(field.name, getattr(row.features.limits, field.name)) for row in self._rows]
            lines.append([field.name.replace("_", " "), *cells])
        lines.append(["client", *(row.client for row in self._rows)])
        lines.append(["server", *(row.server for row in self._rows)])
        return head, lines

    def _ipython_display_(self) -> None:
        from qnb.notebook.brokers_view import display

        display(self)

    def _display_(self) -> object:
        """As marimo asks for it."""
        from qnb.notebook.brokers_view import BrokersView

        return BrokersView(self).widget()

    def __repr__(self) -> str:
        head, lines = self._lines()
        widths = [min(30, max(len(line[at]) for line in (head, *lines))) for at in range(len(head))]
        return "\n".join(
            "  ".join(cell[:width].ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (head, *lines)
        )

    def _repr_html_(self) -> str:
        head, lines = self._lines()
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(line[0])}</th>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in line[1:])
            + "</tr>"
            for line in lines
        )
        return f"<div style='overflow-x:auto'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(row: BrokerRow, feature: str) -> str:
    mark = MARKS[row.features.table()[feature]]
    seen = next((one for one in row.measured if one.feature == feature), None)
    if seen is None or seen.worked is None:
        return mark
    return f"{mark}, {'works' if seen.worked else 'FAILS'}: {seen.said}"


class FeatureTable(BrokerTable):
    """One broker, a row a feature: what session.features() gives."""

    @property
    def df(self) -> pd.DataFrame:
        """Indexed by feature: support (native, built, none), worked (True, False, or None where not probed), seconds,
        said."""
        import pandas as pd

        [row] = self._rows
        seen = {one.feature: one for one in row.measured}
        records = []
        for name, support in row.features.table().items():
            one = seen.get(name)
            records.append((name, support.value, *((one.worked, one.seconds, one.said) if one else (None, None, ""))))
        return pd.DataFrame(records, columns=["feature", "support", "worked", "seconds", "said"]).set_index("feature")

    @property
    def limits(self) -> Limits:
        """The broker's limits. Sizes in bytes, times in seconds."""
        return self._rows[0].features.limits


def features(broker: Any, url: str, measure: bool) -> FeatureTable:
    """The features of a broker that is open."""
    scheme = _base(url)
    extra = registry.EXTRAS.get(scheme)
    seen_on = conformance().get(scheme, {}).get("server", "")
    measured = probe(url) if measure else ()
    row = BrokerRow(scheme, broker.features, seen_on, True, extra, redact(url), True, "", measured)
    return FeatureTable([row], [url])
