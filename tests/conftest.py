"""What all tests share: the private servers, started when first asked for and killed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.services import Services

# How long an example takes is the machine's doing, and several tests run on it at once.
settings.register_profile("qnb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qnb")
LINES = pytest.StashKey[list[str]]()


# Servers that take long to start, and much to keep: all their tests run in one process of xdist, so that each is
# started once.
HEAVY = {"amqp", "sqs", "kafka", "zookeeper", "pubsub", "postgresql", "mysql", "cassandra", "cluster"}
OF_ONE = {"rabbitmq": "amqp", "sqs": "sqs", "kafka": "kafka", "zookeeper": "zookeeper", "pubsub": "pubsub"}  # folders
OF_ONE |= {"test_cassandra": "cassandra", "test_sql_servers": "postgresql"}  # and modules


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`: one group a heavy server, else one a module and broker."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        labels = [getattr(value, "label", value) for value in parameters.values()]
        heavy = [label for label in labels if isinstance(label, str) and label in HEAVY]
        known = [parameters[name] for name in ("kind", "case", "backend_case", "place", "server") if name in parameters]
        heavy += [OF_ONE[name] for name in (item.path.parent.name, item.path.stem) if name in OF_ONE]
        label = heavy[0] if heavy else "-".join(str(getattr(value, "label", value)) for value in known)
        item.add_marker(pytest.mark.xdist_group(label if heavy else f"{item.path.stem}-{label}"))


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    running = Services()
    request.config.stash[LINES] = running.lines
    yield running
    running.stop()


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # of xdist: to be said by the process that has the terminal
        output["services"] = session.config.stash.get(LINES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    lines = node.config.stash.setdefault(LINES, [])
    lines += getattr(node, "workeroutput", {}).get("services", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("services")
        for line in sorted(set(lines)):
            terminalreporter.line(line)
