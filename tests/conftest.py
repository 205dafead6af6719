"""What all tests share: the private servers, started when first asked for and killed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.services import Services

LINES = pytest.StashKey[list[str]]()


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
