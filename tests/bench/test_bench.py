"""That the benchmark works; what it finds is not held against anything here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.systems.base import ROOT
from tests.bench.table import Figure, Line, beside, markdown


def test_one_row_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--rows", "embedded-latency", "--json", "found.json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert "ProcessPoolExecutor" in done.stdout
    assert {line["row"] for line in found["lines"]} == {"embedded-latency"}
    assert found["lines"][0]["ours"]["values"][0] > 0


def test_ratios_are_of_the_same_round() -> None:
    line = beside("row", "what", Figure("a", [10, 40, 30], "/s"), Figure("b", [1, 2, 3], "/s"), least=10)
    assert line.ratios == [10, 20, 10]
    assert line.reached is True
    assert line.target == "≥ 10 ×"
    assert "10 (10–20) ×" in markdown([line])


def test_a_figure_by_itself_is_held_against_its_target() -> None:
    assert Line("row", "what", Figure("a", [3, 1, 2], "s"), most=1.5).reached is False
    assert Line("row", "what", Figure("a", [3, 1, 2], "s")).reached is None
