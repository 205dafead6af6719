"""Write what a run of the conformance suite saw: python -m tests.conformance.table.

It goes into the brokers' table of README.md and docs/brokers.md, and into qnb/monitor/conformance.json, which
qnb.brokers() shows. A cell says what the broker claims, once the suite has seen it work on the running server (or be
refused, for "none").
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from qnb import registry
from qnb.features import Features
from qnb.monitor.brokers import as_json
from tests.services import BROKERS, LINES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "brokers.md"]
BEGIN, END = "<!-- brokers: made by python -m tests.conformance.table -->", "<!-- /brokers -->"
SEEN = ROOT / "qnb/monitor/conformance.json"
# Label of a case → how its server is called in the list of services.
SHOWN = {
    "memory": "", "sqlite": "", "redis": "Redis", "amqp": "RabbitMQ", "sqs": "ministack", "kafka": "Kafka",
    "zookeeper": "ZooKeeper", "pubsub": "Pub/Sub",
}  # fmt: skip
MARKS = {"native": "● native", "built": "◐ built", "none": "○ none"}
TEST = re.compile(r"test_a_feature_works_or_is_refused\[(.+)\]$")


class Seen:
    """Collects which (broker, feature) pairs passed."""

    def __init__(self) -> None:
        self.passed: dict[frozenset[str], bool] = {}
        self.servers: list[str] = []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.servers += session.config.stash.get(LINES, [])

    def server(self, label: str) -> str:
        """Name and version of the server that a broker was seen on."""
        name = SHOWN[label]
        lines = [line.partition(": up in")[0] for line in self.servers if name and name in line]
        return re.sub(r" \(/.*\)$", "", lines[0]) if lines else ("no server" if not name else "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and (found := TEST.search(report.nodeid)):
            self.passed[frozenset(found[1].split("-"))] = report.passed


def features_of(label: str) -> Features:
    """What a broker claims."""
    found: Features = registry.find("broker", f"{label}:").features
    return found


def table(passed: dict[frozenset[str], bool]) -> str:
    """A Markdown table: a row a feature, a column a broker."""
    lines = ["| | " + " | ".join(f"`{label}:`" for label in SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for feature in features_of("memory").table():
        cells = []
        for label in SHOWN:
            worked = passed.get(frozenset((label, feature)))
            claim = MARKS[features_of(label).table()[feature].value]
            cells.append(claim if worked else "not run" if worked is None else "fails")
        lines.append(f"| {feature.replace('_', ' ')} | " + " | ".join(cells) + " |")
    limits = [features_of(label).limits for label in SHOWN]
    sizes = [f"{x.message_bytes / 2**20:.3g} MiB" if x.message_bytes else "none" for x in limits]
    lines.append("| message limit | " + " | ".join(sizes) + " |")
    lines.append("| priority levels | " + " | ".join(str(x.priority_levels) for x in limits) + " |")
    lines.append("| order holds in | " + " | ".join(f"a {x.ordering}".replace("a none", "none") for x in limits) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the suite's feature tests, and put what they saw into the pages."""
    assert {case.label for case in BROKERS} >= set(SHOWN)
    seen = Seen()
    pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests/conformance/test_features.py")], plugins=[seen])
    made = table(seen.passed)
    for page in PAGES:
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    found = {label: {**as_json(features_of(label)), "server": seen.server(label)} for label in SHOWN}
    SEEN.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if seen.passed and all(seen.passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
