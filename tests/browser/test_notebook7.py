"""The live view of a batch in Notebook 7: watched, clicked, saved, and read again without its kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.browser.conftest import written
from tests.browser.lab import Notebook, Server, open_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
NAME = "notebook7.ipynb"
CELLS = (
    """import qnb
session = qnb.Session(workers=2)

def simulate(seed):
    import time
    print("simulating", seed)
    time.sleep(0.1)
    if seed % 40 == 7:
        raise ValueError(f"seed {seed} is unlucky")
    return seed * seed

batch = session.map(simulate, range(3000))
batch""",
    "batch.wait()",
)
BAR = ".qnb-batch [role=progressbar]"


@pytest.fixture(scope="module")
def notebook(server: Server, browser: Browser) -> Iterator[Notebook]:
    """3,000 calls on two workers of the embedded default, and a cell that waits for them."""
    with written(server, browser, NAME, *CELLS, classic=True) as notebook:
        notebook.start()
        yield notebook


def done(notebook: Notebook) -> int:
    return int(notebook.page.locator(BAR).get_attribute("aria-valuenow") or -1)


def view(notebook: Notebook) -> Locator:
    return notebook.page.locator(".qnb-batch")


def test_it_is_live(notebook: Notebook) -> None:
    assert "/notebooks/" in notebook.page.url
    notebook.page.locator(BAR).wait_for(timeout=60_000)
    for _ in range(3):
        moved = f"(before) => document.querySelector('{BAR}').ariaValueNow > before"
        notebook.page.wait_for_function(moved, arg=done(notebook))


def test_a_failure_and_a_row_show_all_of_their_call(notebook: Notebook) -> None:
    batch = view(notebook)
    detail = batch.locator(".qnb-detail")
    batch.locator(".qnb-failures button").first.click()
    expect(detail.get_by_role("region", name="traceback")).to_contain_text("in simulate")
    expect(detail.get_by_role("region", name="traceback")).to_contain_text("is unlucky")
    batch.get_by_role("searchbox").fill("seed 47 ")
    rows = batch.locator(".qnb-grid-body [role=row]")
    expect(rows).to_have_count(1)
    rows.first.click()
    expect(detail).to_contain_text("call 47")
    expect(detail.get_by_role("region", name="output")).to_have_text("simulating 47\n")


def test_it_is_fit_to_be_seen(notebook: Notebook, pictures: Path) -> None:
    for dark in (False, True):
        for width in (600, 1600):
            notebook.show(dark=dark, width=width)
            notebook.take_picture(pictures / f"notebook7-{'dark' if dark else 'light'}-{width}.png")
            assert notebook.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    notebook.show(dark=False, width=1200)


def test_a_click_ends_the_cell_that_waits(notebook: Notebook) -> None:
    assert notebook.ask("panel.content.widgets[1].model.executionState") == "running"
    view(notebook).get_by_role("button", name="Cancel").click()
    expect(view(notebook).locator(".qnb-legend")).to_contain_text("cancelled")
    notebook.wait_for_end(30)
    assert notebook.failed_cells() == []
    assert notebook.console == []


def test_the_last_state_outlives_the_kernel(notebook: Notebook, server: Server, browser: Browser) -> None:
    page = notebook.page
    notebook.save()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Restart Kernel…")).click()
    page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    expect(view(notebook)).to_contain_text("The kernel was restarted. This is how things were")
    expect(view(notebook).locator(".qnb-legend")).to_contain_text("cancelled")
    with open_notebook(server, browser, NAME, classic=True) as reopened:
        table = reopened.page.locator(".jp-OutputArea table", has_text="worker")
        expect(table).to_contain_text("cancelled")
        expect(reopened.page.locator(".jp-OutputArea").first).to_contain_text("3,000 calls")
        assert not reopened.page.get_by_text("Error displaying widget").count()
        assert reopened.console == []
        assert reopened.outside == [], "the page and all that it loads come from the server"
