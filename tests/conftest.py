"""What all tests share: the private servers, started when first asked for and killed at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.services import LINES, Services

# How long an example takes is the machine's doing, and several tests run on it at once.
settings.register_profile("qnb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qnb")


# Servers that take long to start, and much to keep: all their tests run in one process of xdist, so that each is
# started once.
HEAVY = {"amqp", "sqs", "kafka", "zookeeper", "pubsub", "postgresql", "mysql", "cassandra", "cluster"}
OF_ONE = {"rabbitmq": "amqp", "sqs": "sqs", "kafka": "kafka", "zookeeper": "zookeeper", "pubsub": "pubsub"}  # folders
OF_ONE |= {"test_cassandra": "cassandra", "test_sql_servers": "postgresql"}  # and modules
LIGHT = {"memory", "sqlite", "redis", "rediss", "valkey", "shelf", "theirs"}


def group_of(test: str) -> str:
    """What is to run in one process: the tests of a heavy server, else those of one module and broker."""
    path, _, name = test.partition("::")
    module = PurePath(path)
    words = re.split(r"[^a-z]+", name.partition("[")[2])
    heavy = [word for word in words if word in HEAVY]
    heavy += [OF_ONE[part] for part in (module.parent.name, module.stem) if part in OF_ONE]
    light = [word for word in words if word in LIGHT]
    return heavy[0] if heavy else f"{path} {light[0] if light else ''}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadscope`. Not xdist's own groups: they do nothing with pytest 9.2."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


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
