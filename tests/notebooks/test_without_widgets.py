"""What is left of the views where no widget is drawn, and what a widget carries where one is: no network either way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.kernel import ROOT, WIDGET, Kernel

SESSION = """import time, qnb
session = qnb.Session("memory:", workers=2)
long = session.map(lambda n: time.sleep(0.1), range(3000))
over = session.map(abs, range(9))"""
# What each shows, and a word of its table.
VIEWS = {
    "long": "of 3,000",
    "session": "processes busy",
    "session.workers": "current tasks",
    "session.events()": "task-",
    "qnb.brokers()": "confirmed publish",
    "__import__('qnb.notebook.runs_view').notebook.runs_view.display(session)": "session.attach(run)",
    "__import__('qnb.notebook.queues_view').notebook.queues_view.display(session)": "waiting",
}
ENTRIES = ("batch", "session", "workers", "events", "brokers", "runs", "queues")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All views in a notebook that nbconvert has run, with nobody looking, while work was under way."""
    path = tmp_path_factory.mktemp("executed") / "views.ipynb"
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in (SESSION, *VIEWS, "time.sleep(1)")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    convert(path, "--execute", "--to=notebook", "--inplace")
    return path


def convert(path: Path, *options: str) -> None:
    command = [sys.executable, "-m", "nbconvert", *options, path.name]
    environment = {"PYTHONPATH": str(ROOT), "QNB_KEY": "a key for these tests", "QNB_BROKER": "", "QNB_BACKEND": ""}
    environment |= {"HOME": str(path.parent), "PATH": str(Path(sys.executable).parent)}
    subprocess.run(command, cwd=path.parent, env=environment, check=True, capture_output=True)


def shown(path: Path) -> list[dict[str, Any]]:
    """The outputs of the cells that show something."""
    cells = json.loads(path.read_text())["cells"]
    return [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]


@pytest.mark.slow
def test_a_notebook_that_a_program_ran_has_html_and_text_of_every_view(executed: Path) -> None:
    outputs = shown(executed)
    assert [set(data) for data in outputs] == [{"text/html", "text/plain"}] * len(VIEWS)
    for data, word in zip(outputs, VIEWS.values(), strict=True):
        assert word in "".join(data["text/html"])
        assert "<table" in "".join(data["text/html"])
    assert re.search(r"[1-9]\d* done", "".join(outputs[0]["text/plain"])), "the last state, not the first"


@pytest.mark.slow
def test_nbconvert_shows_every_view_as_a_table(executed: Path) -> None:
    convert(executed, "--to=html")
    page = executed.with_suffix(".html").read_text()
    assert f'<script type="{WIDGET}"' not in page
    for word in VIEWS.values():
        assert word in page


def test_a_widget_carries_its_whole_code_and_style(kernel: Kernel) -> None:
    """As anywidget promises: nothing is fetched, by name or from elsewhere."""
    kernel.run(f"from IPython.display import display\n{SESSION}")
    kernel.run("\n".join(f"display({view})" for view in VIEWS))
    opened = [m["content"]["data"]["state"] for m in kernel.heard if m["msg_type"] == "comm_open"]
    widgets = {state["_anywidget_id"].split(".")[-1]: state for state in opened if "_esm" in state}
    assert sorted(widgets) == sorted(f"{entry.title()}Widget" for entry in ENTRIES)
    for entry in ENTRIES:
        state = widgets[f"{entry.title()}Widget"]
        for name, kind in (("_esm", "js"), ("_css", "css")):
            assert state[name].rstrip() == (ROOT / f"qnb/notebook/static/{entry}.{kind}").read_text().rstrip()
        assert not re.search(r"https?://|//# sourceMappingURL|\bimport\b|\bfetch\(|XMLHttpRequest", state["_esm"])
        assert not re.search(r"https?://|@import|url\(", state["_css"])
    kernel.run("session.close()")
