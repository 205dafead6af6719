"""A run outlives its kernel: restarted from JupyterLab's menu, a new kernel attaches, and the same table goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.lab import Notebook, Server, open_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
CALLS = 600
START = f"""
import qnb
session = qnb.Session(workers=2)

def slow(number):
    import time
    time.sleep(0.05)
    return number * number

batch = session.map(slow, range({CALLS}))
open("run.txt", "w").write(batch.run)
batch
"""
ATTACH = """
import qnb
session = qnb.Session(workers=2)
batch = session.attach(open("run.txt").read())
print("found over:", sum(batch.data.states[i] >= 4 for i in range(len(batch))))
batch
"""
CHECK = "print('values right:', batch.results() == [n * n for n in range(len(batch))])"
BAR = ".qnb-batch [role=progressbar]"


def run_cell(notebook: Notebook, number: int) -> None:
    """Run one cell, without waiting for it."""
    notebook.ask("void (panel.content.activeCellIndex = argument)", number)
    notebook.ask("void app.commands.execute('notebook:run-cell').catch(() => null)")


def restart_from_the_menu(notebook: Notebook) -> None:
    page = notebook.page
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Restart Kernel…")).click()
    page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    notebook.wait("panel.sessionContext.session?.kernel?.status === 'idle'", 60)


def test_the_same_table_goes_on(server: Server, browser: Browser, pictures: Path) -> None:
    import nbformat

    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (START, ATTACH, CHECK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), server.root / "restart.ipynb")
    with open_notebook(server, browser, "restart.ipynb") as notebook:
        page = notebook.page
        run_cell(notebook, 0)
        page.wait_for_function(f"() => Number(document.querySelector('{BAR}')?.getAttribute('aria-valuenow')) > 20")
        restart_from_the_menu(notebook)
        run_cell(notebook, 1)
        found = page.locator(".jp-OutputArea").get_by_text("found over:")
        found.wait_for()
        before = int(found.inner_text().split(":")[1].split()[0])
        assert 20 <= before < CALLS, "what had ended is there, and the rest still runs"
        run_cell(notebook, 2)
        page.get_by_text("values right: True").wait_for(timeout=60_000)
        notebook.take_picture(pictures / "restart.png")
        assert page.locator(".jp-OutputArea").get_by_text(f"{CALLS} calls").last.is_visible()
        assert notebook.failed_cells() == []
