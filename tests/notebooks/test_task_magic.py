"""`%%task` in a real kernel: what it says, what appears in its output while it runs, and what it gives back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.kernel import Kernel, Message, start_kernel

SETUP = """
%load_ext qnb
import os, time, qnb
session = qnb.Session("sqlite:", workers=2, key="a key for these tests")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with start_kernel(tmp_path_factory.mktemp("task")) as kernel:
        kernel.run(SETUP)
        yield kernel
        kernel.run("session.close()")


class Cell:
    """A `%%task` cell that has been run: its output is one display, brought up to date."""

    def __init__(self, kernel: Kernel, code: str, line: str = "") -> None:
        self.kernel = kernel
        self.begun = len(kernel.heard)
        self.messages = kernel.run(f"%%task {line}\n{code}")
        shown = [m for m in self.messages if m["msg_type"] == "display_data"]
        assert len(shown) == 1, shown
        self.id = shown[0]["content"]["transient"]["display_id"]

    def states(self) -> list[dict[str, Any]]:
        """The bundles that its output has shown, in order."""
        kinds = ("display_data", "update_display_data")
        found = [m["content"] for m in self.kernel.heard[self.begun :] if m["msg_type"] in kinds]
        return [content["data"] for content in found if content["transient"].get("display_id") == self.id]

    def text(self) -> str:
        return str(self.states()[-1]["text/plain"])

    def html(self) -> str:
        return str(self.states()[-1]["text/html"])

    def until(self, word: str) -> str:
        """Listen until its output has this word."""
        if word not in self.text():
            self.kernel.until(lambda _: word in self.text(), 30)
        return self.text()


def streams(messages: list[Message]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


def test_it_says_what_it_ships_and_gives_back_what_it_makes(kernel: Kernel) -> None:
    kernel.run("import math\nnumbers = list(range(1000))\nunused = 'x' * 10_000\ndef double(n):\n    return 2 * n")
    cell = Cell(kernel, "scale = 3\ntotal = math.floor(scale * sum(map(double, numbers)))\n_private = 1")
    assert "ships numbers (list, " in cell.text()
    assert "double (function, " in cell.text()
    assert "unused" not in cell.text()
    assert "math" not in cell.text()
    cell.until("scale, total are in the notebook")
    assert kernel.value("(total, scale, '_private' in globals())") == (2997000, 3, False)


def test_output_displays_and_progress_appear_while_it_runs(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "open"
    code = f"""
import qnb, time, os
from IPython.display import HTML
print("begun")
display(HTML("<b>bold</b>"))
print("waiting")
while not os.path.exists({str(path)!r}):
    qnb.progress(3, 7, "words")
    time.sleep(0.01)
print("ended")
"""
    cell = Cell(kernel, code)
    assert "ended" not in cell.text(), "it has returned at once"
    kernel.run("mine = 17")
    cell.until("3 of 7 · words")
    assert "running" in cell.text()
    html = cell.html()
    assert html.index("begun") < html.index("<b>bold</b>") < html.index("waiting")
    path.touch()
    cell.until("in the notebook")
    assert "done" in cell.text()
    assert "ended" in cell.html()
    assert not any("begun" in streams([m]) for m in kernel.heard[cell.begun :]), "in its own output alone"


def test_the_last_value_and_open_figures_are_shown(kernel: Kernel) -> None:
    cell = Cell(kernel, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\n{'answer': 42}")
    cell.until("done")
    assert "{'answer': 42}" in cell.text()
    assert 'src="data:image/png;base64,iVBOR' in cell.html()
    quiet = Cell(kernel, "'not shown';")
    quiet.until("done")
    assert "not shown" not in quiet.text()


def test_who_waits_has_the_variables_at_once(kernel: Kernel) -> None:
    Cell(kernel, "import time\ntime.sleep(0.3)\nanswer = 42\nprint('said there')")
    heard = kernel.run("print(_task.result()['answer'], answer)")
    assert streams(heard) == "42 42\n", "and the output stays where it is"
    Cell(kernel, "import asyncio\nawait asyncio.sleep(0.1)\nanswer = 43")
    assert streams(kernel.run("_ = await _task\nprint(answer)")) == "43\n"


def test_chosen_names(kernel: Kernel) -> None:
    kernel.run("model = {}")
    cell = Cell(kernel, "model['fitted'] = True\na = b = 1", "-o model,a --name fitting")
    cell.until("model, a are in the notebook")
    assert cell.text().startswith("fitting  done")
    assert kernel.value("(model, a, 'b' in globals())") == ({"fitted": True}, 1, False)


def test_what_has_changed_meanwhile_is_left_and_told(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "open"
    kernel.run("kept = taken = 'before'")
    code = f"import os, time\nwhile not os.path.exists({str(path)!r}):\n    time.sleep(0.01)\nkept = taken = 'task'"
    cell = Cell(kernel, code, "-o kept,taken")
    kernel.run("kept = 'mine'")
    path.touch()
    cell.until("taken is in the notebook")
    assert "kept changed in the notebook meanwhile and is left so: the task's is _task.result()['kept']" in cell.text()
    assert kernel.value("(kept, taken, _task.result()['kept'])") == ("mine", "task", "task")


def test_what_cannot_come_back_is_told_and_the_rest_comes(kernel: Kernel) -> None:
    code = "import threading\nlock = threading.Lock()\nfine = 1\ndel fine\nfine2 = 2"
    cell = Cell(kernel, code, "-o lock,fine,fine2")
    cell.until("in the notebook")
    assert "fine2 is in the notebook" in cell.text()
    assert "lock is not brought back: the variable 'lock' (a lock) cannot be pickled" in cell.text()
    assert "fine had no value at the end of the cell" in cell.text()


def test_a_failure_shows_the_lines_of_the_cell(kernel: Kernel) -> None:
    cell = Cell(kernel, "\n\ndef divide(n):\n    return 1 / n\n\nprint('before')\ndivide(0)  # here")
    cell.until("failed")
    text = cell.text()
    assert "before" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "divide(0)  # here" in text
    assert "], line 8, in <module>" in text
    assert "], line 5, in divide" in text
    assert "run_cell" not in text
    heard = kernel.run("try:\n    _task.result()\nexcept ZeroDivisionError as error:\n    print(error)")
    assert streams(heard) == "division by zero\n"


def test_running_it_again_replaces_the_run_before(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "open"
    code = f"import os, time\nwhile not os.path.exists({str(path)!r}):\n    time.sleep(0.01)\nresult = 'there'"
    first = Cell(kernel, code)
    kernel.run("older = _task")
    second = Cell(kernel, code)
    older = kernel.value("older.id")
    assert f"the run before, {older}, begun " in second.text()
    assert "replaced by a later run of this cell" in first.until("replaced")
    kernel.until(lambda _: True, 10)
    path.touch()
    second.until("result is in the notebook")
    assert "in the notebook" not in first.text()
    kernel.run("import concurrent.futures; concurrent.futures.wait([older], 10)")
    assert kernel.value("older.state") == "cancelled"


def test_retries_and_timeout(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "tries"
    cell = Cell(kernel, f"open({str(path)!r}, 'a').write('x')\n1 / 0", "--retries 1")
    cell.until("failed")
    assert path.read_text() == "xx"
    slow = Cell(kernel, "import time\ntime.sleep(60)", "--timeout 0.5")
    assert "TaskTimeout" in slow.until("failed")


def test_classes_come_home(kernel: Kernel) -> None:
    kernel.run("class Point:\n    def __init__(self, x):\n        self.x = x\nstart = Point(1)")
    cell = Cell(kernel, "end = Point(start.x + 1)\nclass Other:\n    pass\nother = Other()")
    cell.until("in the notebook")
    assert kernel.value("(type(end) is Point, end.x, type(other) is Other)") == (True, 2, True)


@pytest.mark.parametrize(
    "line, code, said",
    [
        ("-o nothing", "x = 1", "UsageError: -o nothing: this cell has no variable 'nothing'; it assigns x"),
        ("--retry 2", "x = 1", "UsageError: unrecognized arguments: --retry 2"),
        ("--timeout -1", "x = 1", "ConfigurationError: timeout=-1.0: give seconds above 0"),
        ("", "x = 1\n%time x", "UsageError: line 3 has a magic or a shell command, which no worker has"),
        ("", "x = = 1", "UsageError: line 2 is no Python: invalid syntax: x = = 1"),
        ("", "print(lock)", "Unsent: the variable 'lock' (a lock) cannot be pickled"),
    ],
)
def test_errors_are_one_line(kernel: Kernel, line: str, code: str, said: str) -> None:
    kernel.run("import threading\nlock = threading.Lock()")
    begun = len(kernel.heard)
    with contextlib.suppress(AssertionError):  # of a cell that fails; usage errors are said on its stderr
        kernel.run(f"%%task {line}\n{code}")
    errors = [m["content"]["traceback"] for m in kernel.heard[begun:] if m["msg_type"] == "error"]
    told = [*(line for lines in errors for line in lines), *streams(kernel.heard[begun:]).splitlines()]
    assert len(told) == 1
    assert told[0].startswith(said)
