"""The views in marimo, which asks each object for its widget and puts it in place by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import ROOT
from tests.browser.lab import new_page, serve_marimo

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
APP = """
import marimo

app = marimo.App()


@app.cell
def _():
    import time
    import qnb
    session = qnb.Session("memory:", workers=2)
    batch = session.map(lambda seed: time.sleep(0.1) or 1 / (seed - 7), range(3000))
    return batch, qnb, session


@app.cell
def _(batch):
    batch


@app.cell
def _(session):
    session


@app.cell
def _(session):
    session.workers


@app.cell
def _(session):
    session.events()


@app.cell
def _(qnb):
    qnb.brokers()
"""


def test_views_are_live_and_a_click_is_heard(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "app.py").write_text(APP)
    environment = {"PYTHONPATH": str(ROOT), "QNB_BROKER": "", "QNB_BACKEND": "", "QNB_KEY": "a key for these tests"}
    with serve_marimo(tmp_path, environment, "app.py") as server:
        page = new_page(browser)
        page.goto(server.url(""), wait_until="domcontentloaded")
        for view in ("batch", "session", "workers", "events", "brokers"):
            expect(page.locator(f".qnb-{view}")).to_be_visible(timeout=60_000)
        bar = page.locator(".qnb-batch [role=progressbar]")
        expect(bar).not_to_have_attribute("aria-valuenow", bar.get_attribute("aria-valuenow") or "")
        page.locator(".qnb-failures button").click()
        expect(page.locator(".qnb-detail")).to_contain_text("ZeroDivisionError: division by zero")
        page.locator(".qnb-batch").get_by_role("button", name="Cancel").click()
        expect(page.locator(".qnb-batch .qnb-legend")).to_contain_text("cancelled")
        page.screenshot(path=pictures / "marimo.png")
        page.context.close()
