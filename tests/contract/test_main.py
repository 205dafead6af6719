"""Functions, classes and exceptions of `__main__`: a script, IPython's shell, and a real kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import ROOT, run_python
from tests.notebooks.kernel import start_kernel

SCRIPT = Path(__file__).with_name("as_main.py")
NAMES = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def answers(place: str, kind: str) -> dict[str, str | None]:
    """What went wrong, by check; the script runs once a broker."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), place, "2"],
        capture_output=True, text=True, timeout=110, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", NAMES)
def test_main(answers: dict[str, str | None], name: str) -> None:
    assert name in answers
    if answers[name]:
        pytest.fail(str(answers[name]), pytrace=False)


def test_every_check_is_seen(answers: dict[str, str | None]) -> None:
    assert len(NAMES) >= 18
    assert set(answers) == set(NAMES)


SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
def run(source):
    result = shell.run_cell(source, store_history=True)
    return result.error_in_exec
assert run("import qnb; session = qnb.Session(%r, workers=1)") is None
assert run('''
k = 2
class Own(Exception): pass
def scaled(x):
    # a comment before the line
    if x < 0: raise Own(x)  # refused here
    return k * x
assert session.submit(scaled, 4).result(20) == 8
''') is None
assert run("k = 3; assert session.submit(scaled, 4).result(20) == 12") is None
assert run("def scaled(x): return -x\\nassert session.submit(scaled, 4).result(20) == -4") is None
error = run('''
def scaled(x):
    if x < 0: raise Own(x)  # refused here
    return x
session.submit(scaled, -1).result(20)
''')
assert type(error) is shell.user_ns["Own"], error
run("session.close()")
"""


def test_ipython_shell(tmp_path: Path) -> None:
    """The shell renders a remote exception as a local one: the cell's own lines, with its number."""
    done = run_python(SHELL % f"sqlite:///{tmp_path}/t.db", cwd=tmp_path, IPYTHONDIR=str(tmp_path / "ipython"))
    assert done.returncode == 0, done.stdout + done.stderr
    rendered = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert "refused here" in rendered
    assert "Own: -1" in rendered
    assert re.search(r"Cell In\[\d+\], line \d+, in scaled", rendered) or "in scaled(x)" in rendered, rendered
    assert "runner.py" not in rendered


def test_kernel(tmp_path: Path) -> None:
    """A real ipykernel: edit a cell, run it, and see the error as if it had happened there."""
    with start_kernel(tmp_path) as kernel:
        kernel.run("import qnb; session = qnb.Session(workers=1)")
        kernel.run("rate = 2\ndef price(x):\n    return x * rate")
        assert kernel.value("session.submit(price, 4).result(20)") == 8
        kernel.run("rate = 5")
        assert kernel.value("session.submit(price, 4).result(20)") == 20
        kernel.run("class Refused(Exception):\n    pass\ndef price(x):\n    raise Refused(x)  # the cell's own line")
        with pytest.raises(AssertionError) as shown:
            kernel.run("session.submit(price, 4).result(20)")
        text = re.sub(r"\x1b\[[\d;]*m", "", str(shown.value))
        assert "the cell's own line" in text
        assert "Refused: 4" in text
        assert "runner.py" not in text
        assert kernel.value("isinstance(session.submit(price, 1).exception(20), Refused)") is True
        assert (tmp_path / ".qnb" / ".gitignore").read_text() == "*\n"
        kernel.run("session.close()")
