"""Notebooks as pages of voila, which runs a notebook before its page has a reader."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import ROOT
from tests.browser.lab import Server, new_page, serve_voila

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
DASHBOARD = "06_dashboard.ipynb"
# The batch is over, and would have been closed, before the last cell is; the other is over within its own cell.
EARLY = """import time, qnb
from qnb.notebook import live
live.GRACE = 0.2
session = qnb.Session("memory:", workers=2)
late = session.map(lambda n: time.sleep(0.2) or 1 / (n - 2), range(4))
display(late)"""
WAIT = """over = session.map(abs, range(7))
over.wait()
over"""
THEN = """late.wait()
time.sleep(1)"""


@pytest.fixture(scope="module")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {"PYTHONPATH": str(ROOT), "QNB_BROKER": "", "QNB_BACKEND": "", "QNB_KEY": "a key for these tests"}
    with serve_voila(tmp_path_factory.mktemp("voila"), environment) as server:
        yield server


def open_page(voila: Server, browser: Browser, name: str, theme: str) -> Page:
    """The page of a notebook, with everything in it."""
    page = new_page(browser)
    page.goto(f"{voila.url(f'voila/render/{name}')}&theme={theme}", wait_until="domcontentloaded")
    expect(page.locator(".qnb-view").first).to_be_visible(timeout=60_000)
    return page


def test_the_dashboard_is_live(voila: Server, browser: Browser, pictures: Path) -> None:
    shutil.copy(ROOT / "notebooks" / DASHBOARD, voila.root / DASHBOARD)
    page = open_page(voila, browser, DASHBOARD, "light")
    expect(page.locator(".qnb-session")).to_contain_text("1 worker with 2 processes")
    expect(page.locator(".qnb-events tbody tr").first).to_be_visible()
    expect(page.locator(".qnb-runs")).to_contain_text("walk")
    done = "document.querySelector('.qnb-batch [role=progressbar]').ariaValueNow"
    before = page.evaluate(done)
    page.wait_for_function(f"(before) => Number({done}) > Number(before)", arg=before)
    page.screenshot(path=pictures / "voila-live.png")
    page.get_by_role("button", name=re.compile("^Pause local-")).click()
    expect(page.locator(".qnb-workers tbody tr")).to_contain_text("paused")
    page.locator(".qnb-batch").get_by_role("button", name="Cancel").click()
    expect(page.locator(".qnb-batch .qnb-legend")).to_contain_text("cancelled")
    for width in (600, 1600):
        page.set_viewport_size({"width": width, "height": 1800})
        page.screenshot(path=pictures / f"voila-light-{width}.png")
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    page.context.close()


def test_what_was_over_before_the_page_opened_is_there_and_answers(
    voila: Server, browser: Browser, pictures: Path
) -> None:
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in (EARLY, WAIT, THEN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), voila.root / "early.ipynb")
    page = open_page(voila, browser, "early.ipynb", "dark")
    expect(page.locator(".qnb-batch")).to_have_count(2)
    late, over = page.locator(".qnb-batch").all()
    expect(over).to_contain_text("7 calls")
    expect(late).to_contain_text("4 calls")
    late.locator(".qnb-failures button").click()
    expect(late.locator(".qnb-detail")).to_contain_text("ZeroDivisionError: division by zero")
    assert not page.get_by_text(re.compile("Error displaying widget|model not found", re.IGNORECASE)).count()
    for width in (600, 1600):
        page.set_viewport_size({"width": width, "height": 1800})
        page.screenshot(path=pictures / f"voila-dark-{width}.png")
    page.context.close()
