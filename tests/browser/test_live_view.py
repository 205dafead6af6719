"""The live view of a Batch under a real JupyterLab: clicks, reloads, a kernel that is busy or dies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import Open
from tests.browser.lab import Notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDGET = "application/vnd.jupyter.widget-view+json"


def state(notebook: Notebook, word: str) -> Locator:
    """Of a state that the bar has, its word."""
    return notebook.page.locator(".qnb-batch .qnb-legend").get_by_text(word)


def done(notebook: Notebook) -> int:
    return int(notebook.page.locator(".qnb-bar").first.get_attribute("aria-valuenow") or -1)


def test_sizes_and_states_in_both_themes(write: Open, pictures: Path) -> None:
    cells = [
        "few = FakeBatch(3, name='train').play(60)\nfew",
        "many = FakeBatch(100_000, name='simulate', failing=0.02).play(600, step=20)\nmany",
        "ended = FakeBatch(500, failing=0.05)\nended._play(0.2, 4)\nended",
        "new = FakeBatch(40, name='waiting')\nnew",
    ]
    with write(*cells) as notebook:
        notebook.run_all()
        notebook.page.locator(".qnb-failures li").first.wait_for()
        for dark, width in ((True, 1600), (False, 600)):
            notebook.show(dark=dark, width=width)
            notebook.take_picture(pictures / f"batches-{'dark' if dark else 'light'}-{width}.png")
        assert notebook.page.locator(".qnb-batch").count() == 4
        assert notebook.console == []


def test_a_click_reaches_a_kernel_that_is_busy(write: Open) -> None:
    with write("batch = FakeBatch(400).play(100)\ndisplay(batch)\nwhile not batch.over: time.sleep(0.05)") as notebook:
        notebook.start()
        notebook.page.get_by_role("button", name="Cancel").click()
        state(notebook, "cancelled").wait_for()  # long before the cell would end by itself
        notebook.wait_for_end(30)
        assert notebook.console == []


def test_a_kernel_that_cannot_hear_while_busy_is_told_of(write: Open, tmp_path: Path) -> None:
    """As with ipykernel 6, or a front end that knows no subshells."""
    flag = tmp_path / "go on"
    busy = f"while not os.path.exists({str(flag)!r}):\n    time.sleep(0.05)"
    with write("batch = FakeBatch(400).play(300)\nbatch", busy) as notebook:
        notebook.ask("void (panel.sessionContext.session.kernel.commsOverSubshells = 'disabled')")
        notebook.start()
        notebook.page.get_by_role("button", name="Cancel").click()
        notebook.page.get_by_text("The kernel is busy with a cell and will do this after it").wait_for()
        flag.touch()
        state(notebook, "cancelled").wait_for()


def test_a_short_batch_leaves_no_error_behind(write: Open) -> None:
    """The widget may be closed while the browser still builds its view."""
    with write(*["FakeBatch(3).play(0.05)"] * 5) as notebook:
        notebook.run_all()
        expect(notebook.page.locator(".qnb-batch").get_by_text("3 calls", exact=True)).to_have_count(5, timeout=30_000)
        notebook.wait(f"!JSON.stringify(panel.content.model.toJSON()).includes('{WIDGET}')")
        assert notebook.console == []


def test_a_reloaded_page_goes_on(write: Open) -> None:
    with write("batch = FakeBatch(3000).play(100)\nbatch") as notebook:
        notebook.run_all()
        notebook.save()
        before = done(notebook)
        notebook.page.reload(wait_until="domcontentloaded")
        notebook.page.locator(".qnb-bar").wait_for()
        notebook.page.wait_for_function(
            "(before) => Number(document.querySelector('.qnb-bar').ariaValueNow) > before + 30", arg=before
        )
        assert notebook.console == []


COUNT = """
from qnb.notebook.stage import STAGE
[view] = STAGE.views()
widget, sent = view._widget, []
widget.send, send = lambda message, buffers=None: (sent.append(message["kind"]), send(message, buffers)), widget.send
"""


LOOK = """
import asyncio
while view._seen():
    await asyncio.sleep(0.05)
before, moved = list(sent), batch.counts['done']
while batch.counts['done'] < moved + 200:
    await asyncio.sleep(0.05)
print(len(before) > 0, sent[len(before) :])
"""


def test_a_view_that_is_scrolled_away_is_sent_nothing(write: Open) -> None:
    with write("batch = FakeBatch(30_000).play(300)\nbatch", COUNT, "print('far\\n' * 200)", LOOK) as notebook:
        notebook.ask("(panel.content.activeCellIndex = 4, app.commands.execute('notebook:run-all-above'))")
        notebook.page.locator(".jp-OutputArea-output", has_text="far").wait_for()
        # a view that is new is seen until it has found out that it is not: the one that stays is waited for, and the
        # kernel is not kept busy meanwhile, for it may have to hear the first view to bring the one that stays
        notebook.page.locator(".qnb-live .qnb-batch").wait_for()
        notebook.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 1e6)")
        notebook.ask("void app.commands.execute('notebook:run-cell')")
        notebook.wait_for_end()
        assert notebook.page.locator(".jp-OutputArea-output").last.inner_text().strip() == "True []"


def test_a_kernel_that_dies_is_told_of(write: Open, tmp_path: Path) -> None:
    # Killed once the view has been seen: one that was never drawn has nothing to say.
    flag = tmp_path / "die"
    die = f"""import pathlib, threading
def wait_and_die():
    while not pathlib.Path({str(flag)!r}).exists():
        time.sleep(0.05)
    os.kill(os.getpid(), 9)
threading.Thread(target=wait_and_die, daemon=True).start()"""
    with write("batch = FakeBatch(3000).play(300)\nbatch", die) as notebook:
        notebook.start()
        notebook.page.get_by_text(re.compile(r"\d+ of 3,000")).first.wait_for(timeout=30_000)
        flag.touch()
        notebook.page.get_by_text("The kernel was restarted").wait_for(timeout=30_000)  # as Jupyter does of itself
