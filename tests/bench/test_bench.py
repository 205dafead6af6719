"""That the benchmark works; what it finds is not held against anything here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qnb import registry
from tests.bench.rows import ROWS
from tests.bench.systems import installed, names, system_class
from tests.bench.systems.base import ROOT
from tests.bench.table import Figure, Line, beside, markdown
from tests.services import BROKERS, Services


@pytest.mark.parametrize("row, peer", [("embedded-latency", "ProcessPoolExecutor"), ("zookeeper", "raw kazoo")])
def test_one_row_is_measured(tmp_path: Path, services: Services, row: str, peer: str) -> None:
    for case in BROKERS:
        if case.label == row:
            case.place(services)  # leaves the test out where there is no such server
    command = [sys.executable, "-m", "tests.bench", "--quick", "--rows", row, "--json", "found.json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert peer in done.stdout
    assert {line["row"] for line in found["lines"]} == {row}
    assert found["lines"][0]["ours"]["values"][0] > 0


def test_each_kind_of_broker_has_a_row() -> None:
    labels = {case.label for case in BROKERS if registry.EXTRAS.get(case.label, "redis") != "redis"}
    assert {"amqp", "sqs", "zookeeper"} <= labels <= ROWS.keys()


@pytest.mark.parametrize("name", names())
def test_each_system_can_be_had(name: str) -> None:
    if installed(name):
        found = system_class(name)
        assert found.label
        assert found.broker in {"", *(case.label for case in BROKERS)}


def test_ratios_are_of_the_same_round() -> None:
    line = beside("row", "what", Figure("a", [10, 40, 30], "/s"), Figure("b", [1, 2, 3], "/s"), least=10)
    assert line.ratios == [10, 20, 10]
    assert line.reached is True
    assert line.target == "≥ 10 ×"
    assert "10 (10–20) ×" in markdown([line])


def test_a_figure_by_itself_is_held_against_its_target() -> None:
    assert Line("row", "what", Figure("a", [3, 1, 2], "s"), most=1.5).reached is False
    assert Line("row", "what", Figure("a", [3, 1, 2], "s")).reached is None
