"""Each view on a real run on Redis, with two workers: looked at, driven by clicks and by keys, photographed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.browser.conftest import ROOT, written
from tests.browser.lab import Notebook, Server
from tests.services import Services

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
AXE = ROOT / "widgets" / "node_modules" / "axe-core" / "axe.min.js"
WIDGET = "application/vnd.jupyter.widget-view+json"
STOPS = "button:enabled, input:enabled, select:enabled, summary, [tabindex='0']"
VIEWS = ("batch", "session", "workers", "brokers", "events", "runs", "queues")
WORK = """
def simulate(seed, side):
    import time
    print("simulating", seed, side)
    time.sleep(0.1 + seed % 5 / 10)
    if seed % 9 == 4:
        raise ValueError(f"seed {seed} is unlucky")
    return {"minutes": 90 + seed * 7, "crossed": seed % 2 == 0}
"""
CELLS = (
    "batch = session.sweep(simulate, {'seed': seeds, 'side': ['left', 'right']})\nbatch",
    "session",
    "session.workers",
    "qnb.brokers()",
    "stream",
    "from qnb.notebook import runs_view, queues_view\nruns_view.display(session)",
    "queues_view.display(session)",
)


@pytest.fixture(scope="module")
def notebook(services: Services, server: Server, browser: Browser) -> Iterator[Notebook]:
    """All views in one notebook, while 120 calls run on two workers."""
    url = services.private("redis", appendonly="yes").url
    environment = os.environ | {"QNB_KEY": "a key for these tests", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qnb.cli", "worker", url, "--concurrency", "2", "--name"]
    workers = [
        subprocess.Popen([*command, name], env=environment, cwd=server.root, stderr=subprocess.DEVNULL)
        for name in ("alpha", "beta")
    ]
    connect = f"import qnb\nsession = qnb.Session({url!r})\nstream = session.events()\nseeds = range(60){WORK}"
    wait = "import time\nwhile len(session.workers) < 2:\n    time.sleep(0.05)"
    try:
        with written(server, browser, "views.ipynb", connect, wait, *CELLS) as notebook:
            notebook.run_all(60)
            yield notebook
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()


def view(notebook: Notebook, name: str) -> Locator:
    """The view of that name, in sight: out of sight it would rest."""
    found = notebook.page.locator(f".qnb-{name}").first
    expect(found).to_be_visible()
    notebook.page.evaluate("(name) => document.querySelector(`.qnb-${name}`).scrollIntoView({block: 'center'})", name)
    return found


def test_all_are_there_and_live(notebook: Notebook) -> None:
    assert notebook.failed_cells() == []
    for name in VIEWS:
        expect(view(notebook, name)).to_be_visible()
    expect(view(notebook, "session")).to_contain_text(re.compile(r"2 workers with 4 processes"))
    expect(view(notebook, "workers").locator("tbody tr")).to_have_count(2)
    expect(view(notebook, "workers")).to_contain_text(re.compile(r"\d of 4 processes busy · \d+ MiB"))
    expect(view(notebook, "workers").locator("tbody tr").first).to_contain_text("seen now")
    expect(view(notebook, "events").locator("tbody tr").first).to_be_visible()
    expect(view(notebook, "queues")).to_contain_text("2 workers, 4 processes")
    assert notebook.console == []


def test_outputs_are_html_while_views_are_live(notebook: Notebook) -> None:
    """What is saved once a view has been drawn needs neither kernel nor widget."""
    notebook.wait(f"!JSON.stringify(panel.content.model.toJSON()).includes('{WIDGET}')")
    saved = notebook.save()
    kinds = [set(output["data"]) for cell in saved["cells"] for output in cell.get("outputs", []) if "data" in output]
    assert len(kinds) == len(VIEWS)
    assert {frozenset(kind) for kind in kinds} == {frozenset({"text/html", "text/plain"})}


def test_a_worker_is_paused_resumed_grown_and_shrunk(notebook: Notebook) -> None:
    workers = view(notebook, "workers")
    alpha = workers.locator("tbody tr", has_text="alpha")
    workers.get_by_role("button", name="Pause alpha").click()
    expect(alpha).to_contain_text("paused")
    workers.get_by_role("button", name="Resume alpha").click()
    expect(alpha).not_to_contain_text("paused")
    workers.get_by_role("button", name="One process more for alpha").click()
    expect(alpha).to_contain_text("of 3")
    workers.get_by_role("button", name="One process fewer for alpha").click()
    expect(alpha).to_contain_text("of 2", timeout=10_000)


def test_a_call_is_opened_from_its_failure(notebook: Notebook) -> None:
    batch = view(notebook, "batch")
    batch.locator(".qnb-failures button").first.click(timeout=30_000)
    detail = batch.locator(".qnb-detail")
    expect(detail.locator("pre").first).to_contain_text("is unlucky")
    expect(detail).to_contain_text("in simulate")
    expect(detail.locator("pre").last).to_contain_text("simulating")
    notebook.page.keyboard.press("Escape")
    batch.get_by_role("button", name="Close this call").click()
    expect(detail).to_be_hidden()


def test_the_batch_is_sorted_filtered_and_retried_when_it_is_over(notebook: Notebook) -> None:
    batch = view(notebook, "batch")
    expect(batch.get_by_text("120 calls", exact=True)).to_be_visible(timeout=60_000)
    rows = batch.locator(".qnb-grid-body [role=row]")
    batch.get_by_role("button", name="seed", exact=True).dblclick()
    expect(rows.first).to_contain_text("59")
    batch.get_by_role("combobox", name="Rows in this state").select_option("failed")
    expect(rows).to_have_count(14)
    batch.get_by_role("searchbox").fill("seed 13 ")
    expect(rows).to_have_count(2)
    rows.first.click()
    expect(batch.locator(".qnb-detail")).to_contain_text("seed 13 is unlucky")
    batch.get_by_role("button", name="Retry failed").click()
    again = batch.locator(".qnb-again .qnb-batch")
    expect(again.get_by_text("14 calls", exact=True)).to_be_visible(timeout=30_000)
    batch.get_by_role("searchbox").first.fill("")
    batch.get_by_role("combobox", name="Rows in this state").first.select_option("")


def test_the_timeline_zooms_and_tells_of_a_call(notebook: Notebook) -> None:
    batch = view(notebook, "batch")
    batch.get_by_role("button", name="Timeline").first.click()
    canvas = batch.locator("canvas").first
    assert "120 calls on 2 workers" in (canvas.get_attribute("aria-label") or "")
    box = canvas.bounding_box()
    assert box is not None
    tip = batch.locator(".qnb-tip").first
    for place in range(1, 20):  # between two calls a worker may have had none
        canvas.hover(position={"x": box["width"] * place / 20, "y": 22})
        if tip.is_visible():
            break
    expect(tip).to_contain_text(re.compile(r"call \d+ · (done|failed)"))
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    canvas.focus()
    notebook.page.keyboard.press("+")
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != before
    notebook.page.keyboard.press("0")
    batch.get_by_role("button", name="Results").first.click()


def test_a_broker_is_probed_live(notebook: Notebook) -> None:
    brokers = view(notebook, "brokers")
    brokers.get_by_role("button", name="Probe redis").click()
    expect(brokers.locator(".qnb-seen")).to_contain_text("command and reply in", timeout=20_000)
    expect(brokers.locator(".qnb-note")).to_contain_text("10 features work, 0 fail")


def test_the_stream_is_filtered_and_paused(notebook: Notebook) -> None:
    events = view(notebook, "events")
    events.get_by_role("searchbox").fill("task-failed")
    expect(events.locator("tbody tr").first).to_contain_text("task-failed")
    expect(events.locator("tbody tr", has_text="task-done")).to_have_count(0)
    events.get_by_role("searchbox").fill("")
    events.get_by_role("button", name="Pause the stream").click()
    expect(events).to_contain_text("0 since the pause")
    events.get_by_role("button", name="Go on").click()


def test_a_run_is_attached_by_a_click(notebook: Notebook) -> None:
    runs = view(notebook, "runs")
    runs.get_by_role("button", name="Attach run").last.click()
    attached = runs.locator(".qnb-batch").first
    expect(attached).to_contain_text("120 calls")
    expect(runs).to_contain_text("batch = session.attach(")


def test_pictures_in_both_themes_at_two_widths(notebook: Notebook, pictures: Path) -> None:
    """While a run of 10,000 calls is under way."""
    notebook.ask("panel.sessionContext.session.kernel.requestExecute({code: argument}).done", "seeds = range(5000)")
    notebook.ask("(panel.content.activeCellIndex = 2, app.commands.execute('notebook:run-cell'))")
    expect(view(notebook, "batch").locator(".qnb-failures")).to_be_visible(timeout=60_000)
    notebook.page.add_style_tag(content=".qnb-view { padding: 8px !important; }")
    for dark in (False, True):
        for width in (600, 1600):
            notebook.show(dark=dark, width=width, height=1200)  # so that all of the tallest fits
            for name in VIEWS:
                wait_for_news(notebook, name)
                take_picture(view(notebook, name), pictures / f"{name}-{'dark' if dark else 'light'}-{width}.png")
            assert notebook.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    notebook.show(dark=False, width=1200)
    view(notebook, "batch").get_by_role("button", name="Cancel").click()
    expect(view(notebook, "batch").locator(".qnb-legend")).to_contain_text("cancelled")
    assert notebook.console == []


def wait_for_news(notebook: Notebook, name: str) -> None:
    """Until a view that was out of sight shows what is."""
    found = view(notebook, name)
    if name == "batch":
        bar = found.get_by_role("progressbar").first
        expect(bar).not_to_have_attribute("aria-valuenow", bar.get_attribute("aria-valuenow") or "", timeout=30_000)
    elif name in ("runs", "session"):
        expect(found).to_contain_text("10,000", timeout=30_000)
    elif name == "queues":
        expect(found).to_contain_text(re.compile(r"[1-9][\d,]* messages waiting"), timeout=30_000)


def take_picture(found: Locator, target: Path) -> None:
    """Of a view without what surrounds it."""
    found.page.mouse.move(0, 0)
    found.screenshot(path=target, animations="disabled")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_fault_of_accessibility(notebook: Notebook, dark: bool) -> None:
    notebook.show(dark=dark, width=1200)
    notebook.page.evaluate(AXE.read_text())
    found = notebook.page.evaluate("async () => (await axe.run('.qnb-view')).violations")
    serious = [
        (fault["id"], [node["html"][:160] + " " + node["failureSummary"][:300] for node in fault["nodes"]][:4])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
    notebook.show(dark=False, width=1200)


def test_the_keyboard_alone_can_do_everything(notebook: Notebook) -> None:
    """Whatever a click does, one of the stops of the Tab key does."""
    # each task that runs has a button of its own, which goes with it
    expect(view(notebook, "workers").locator(".qnb-tasks li")).to_have_count(0, timeout=60_000)
    for name in VIEWS:
        unreachable = view(notebook, name).evaluate(
            """(view) => {
              const can = 'button, input, select, summary, a[href], [tabindex="0"], [tabindex="-1"]';
              const shown = (part) => part.getClientRects().length > 0;
              return [...view.querySelectorAll('*')].filter(shown)
                .filter((part) => getComputedStyle(part).cursor === 'pointer' && !part.closest(`${can}, label`))
                .map((part) => part.outerHTML.slice(0, 120));
            }"""
        )
        assert unreachable == [], name
        stops = view(notebook, name).locator(STOPS).filter(visible=True)
        if not stops.count():
            assert name == "session", "which only shows"
            continue
        stops.first.focus()
        notebook.page.keyboard.press("Tab")
        notebook.page.keyboard.press("Shift+Tab")  # from here on the browser knows that it is the keyboard
        for place in range(stops.count()):
            if place:
                notebook.page.keyboard.press("Tab")
            expect(stops.nth(place)).to_be_focused()
            outline = stops.nth(place).evaluate("(stop) => getComputedStyle(stop).outlineStyle")
            assert outline != "none", f"{name}: the focus is not to be seen on stop {place}"
    workers = view(notebook, "workers")
    workers.get_by_role("button", name="Pause alpha").press("Enter")
    workers.get_by_role("button", name="Resume alpha").press(" ")
    expect(workers.get_by_role("button", name="Pause alpha")).to_be_focused()
    queues = view(notebook, "queues")
    queues.get_by_role("button", name="pause qnb on all workers").press("Enter")
    queues.get_by_role("button", name="resume qnb on all workers").press(" ")
    expect(queues.get_by_role("button", name="pause qnb on all workers")).to_be_focused()
    view(notebook, "events").get_by_role("button", name="Pause the stream").press("Enter")
    view(notebook, "events").get_by_role("button", name="Go on with the stream").press(" ")
    batch = view(notebook, "batch")
    batch.locator(".qnb-grid").first.focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "Enter"):
        notebook.page.keyboard.press(key)
    detail = batch.locator(".qnb-detail").first
    expect(detail).to_be_visible()
    batch.get_by_role("button", name="Close this call").first.focus()
    notebook.page.keyboard.press("Enter")
    expect(detail).to_be_hidden()
    expect(batch.locator(".qnb-grid").first).to_be_focused()


def test_what_is_brought_up_to_date_for_who_saves_stays_under_ones_hands(notebook: Notebook) -> None:
    """Every half minute the HTML behind a live view is made anew, and the view put where it was."""
    grid = view(notebook, "batch").locator(".qnb-grid").first
    grid.hover()
    notebook.page.mouse.wheel(0, 2400)
    notebook.page.wait_for_function("() => document.querySelector('.qnb-batch .qnb-grid').scrollTop > 2000")
    grid.focus()
    scrolled = grid.evaluate("(grid) => (window.place = grid.closest('.qnb-live'), grid.scrollTop)")
    publish = "from qnb.notebook.stage import STAGE\nfor view in STAGE.views():\n    view.publish()"
    notebook.ask("panel.sessionContext.session.kernel.requestExecute({code: argument}).done", publish)
    notebook.page.wait_for_function("() => !window.place.isConnected && document.querySelector('.qnb-live .qnb-grid')")
    expect(grid).to_be_focused()
    assert grid.evaluate("(grid) => grid.scrollTop") == scrolled


def test_a_task_is_ended_and_a_worker_shut_down(notebook: Notebook) -> None:
    notebook.ask(
        "void panel.sessionContext.session.kernel.requestExecute({code: argument})",
        "import time\nlong = session.submit(time.sleep, 60)\nsession.flush()",
    )
    workers = view(notebook, "workers")
    sleeping = workers.locator(".qnb-tasks li", has_text="sleep")
    sleeping.get_by_role("button", name=re.compile("End task")).click(timeout=15_000)
    expect(sleeping).to_have_count(0, timeout=15_000)
    for _ in range(2):  # asks, and does it
        workers.get_by_role("button", name="Shut down beta").click()
    expect(workers.locator("tbody tr", has_text="beta")).to_contain_text("gone, last seen", timeout=30_000)
