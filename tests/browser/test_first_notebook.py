"""notebooks/01_first_tasks.ipynb in a real JupyterLab, on real workers: run, looked at, saved and opened again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.lab import Notebook, Server, open_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
NAME = "01_first_tasks.ipynb"
SOURCE = Path(__file__).parents[2] / "notebooks" / NAME
# Collects what the live views show, from the first to the last.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    for (const bar of document.querySelectorAll('.qnb-batch [role=progressbar]'))
      window.seen.push([Number(bar.getAttribute('aria-valuenow')), Number(bar.getAttribute('aria-valuemax'))]);
  }).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['aria-valuenow']});
}"""
TRUSTED = "panel.content.widgets.every(({ model }) => model.type !== 'code' || model.trusted)"


@pytest.fixture(scope="module")
def ran(server: Server, browser: Browser) -> Iterator[Notebook]:
    """The notebook, after all its cells."""
    shutil.copy(SOURCE, server.root / NAME)
    with open_notebook(server, browser, NAME) as notebook:
        notebook.ask("app.commands.execute('notebook:clear-all-cell-outputs')")
        notebook.page.evaluate(WATCH)
        notebook.run_all()
        yield notebook


def html_outputs(file: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs that are, or were, a batch."""
    outputs = [output for cell in file["cells"] for output in cell.get("outputs", [])]
    return [output for output in outputs if "rows, the last that changed" in str(output.get("data"))]


def test_every_cell_runs_and_the_console_is_silent(ran: Notebook) -> None:
    assert ran.failed_cells() == []
    assert ran.console == []


def test_the_bar_moved_and_reached_the_end(ran: Notebook) -> None:
    seen = ran.page.evaluate("() => window.seen")
    sweep = [done for done, total in seen if total == 1560]
    assert len(set(sweep)) > 5
    assert sweep == sorted(sweep)
    assert ran.page.locator(".qnb-batch").get_by_text("1,560 calls").is_visible()


def test_it_is_fit_to_be_seen(ran: Notebook, pictures: Path) -> None:
    for dark, width in ((True, 600), (False, 1600)):
        ran.show(dark=dark, width=width)
        ran.take_picture(pictures / f"first-tasks-{'dark' if dark else 'light'}-{width}.png")
        # outputs scroll within themselves, the page does not
        assert ran.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    ran.show(dark=False, width=1000)
    cells = ran.page.locator(".jp-Notebook .jp-Cell")
    ran.take_picture(pictures / "first-tasks.png", cells.nth(19), cells.nth(21))
    ran.show(dark=False, width=1200)


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
def test_reopened_it_shows_the_last_state(
    ran: Notebook, server: Server, browser: Browser, pictures: Path, trusted: bool
) -> None:
    """By a colleague, or on another day: under another name, for a kernel that still runs would go on with this one."""
    saved = ran.save()
    assert len(html_outputs(saved)) == 2
    assert all(set(output["data"]) == {"text/html", "text/plain"} for output in html_outputs(saved))
    if not trusted:  # another text has no signature here
        saved["metadata"]["title"] = "somebody else's"
    name = f"reopened-{'trusted' if trusted else 'untrusted'}.ipynb"
    (server.root / name).write_text(json.dumps(saved))
    with open_notebook(server, browser, name) as reopened:
        assert reopened.ask(TRUSTED) is trusted
        table = reopened.page.locator(".jp-OutputArea table", has_text="worker").last
        table.wait_for()
        assert "done" in table.inner_text()
        assert not reopened.page.locator(".qnb-view").count()
        assert reopened.page.locator(".jp-OutputArea").get_by_text("1,560 calls").is_visible()
        assert not reopened.page.get_by_text("Error displaying widget").count()
        assert reopened.console == []
        reopened.take_picture(pictures / name.replace(".ipynb", ".png"))
