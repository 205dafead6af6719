"""What the views cost the browser: frames while 100,000 rows are scrolled, and what is left after 200 re-runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession

from tests.browser.conftest import Open, written
from tests.browser.lab import Server

pytestmark = [pytest.mark.browser, pytest.mark.unproven, pytest.mark.slow, pytest.mark.timeout(300)]
FRAME = 1000 / 60
SPEED, DISTANCE = 20_000, 60_000  # pixels: fourteen rows a frame
FRAMES = """() => {
  window.frames_drawn = 0;
  const step = () => { window.frames_drawn++; requestAnimationFrame(step); };
  requestAnimationFrame(step);
}"""


def own_times(trace: bytes) -> list[float]:
    """Milliseconds of CPU that each task of the page's main thread took, from Chromium's own trace."""
    events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    main = {thread for thread, name in names.items() if name == "CrRendererMain"}
    tasks = [e for e in events if e.get("name") == "RunTask" and e.get("ph") == "X"]
    return [e["tdur"] / 1000 for e in tasks if (e["pid"], e["tid"]) in main]


def test_a_hundred_thousand_rows_scroll_at_sixty_frames(server: Server, browser: Browser, tmp_path: Path) -> None:
    """By a hand that turns the wheel hard, through 2,500 rows in three seconds, while a thousand calls a second end.

    What counts is the page's own time of CPU, which others that use this machine do not change.
    """
    cells = ["from tests.notebooks.fake_batch import FakeBatch", "FakeBatch(100_000, failing=0.01).play(100, step=20)"]
    with written(server, browser, "scroll.ipynb", *cells) as notebook:
        notebook.run_all()
        grid = notebook.page.locator(".qnb-grid")
        grid.locator(".qnb-grid-body [role=row]").first.wait_for()
        box = grid.bounding_box()
        assert box is not None
        devtools = notebook.page.context.new_cdp_session(notebook.page)
        browser.start_tracing(page=notebook.page, path=tmp_path / "trace.json", categories=["toplevel"])
        notebook.page.evaluate(FRAMES)
        place = {"x": box["x"] + 100, "y": box["y"] + 100}
        devtools.send("Input.synthesizeScrollGesture", {**place, "yDistance": -DISTANCE, "speed": SPEED})
        frames = notebook.page.evaluate("() => window.frames_drawn")
        times = own_times(browser.stop_tracing())
        assert grid.evaluate("(grid) => grid.scrollTop") > DISTANCE / 2
        slow = sum(time > FRAME for time in times)
        print(f"{sum(times) / frames:.1f} ms of CPU a frame of {frames}; {slow} tasks longer than {FRAME:.1f} ms")
        assert sum(times) / frames < FRAME
        assert slow <= frames / 20
        assert notebook.console == []


COUNT = """
import gc, json, threading
from comm import get_comm_manager
from ipywidgets.widgets.widget import _instances
from qnb.notebook.stage import STAGE
def count():
    gc.collect()
    return [len(get_comm_manager().comms), threading.active_count(), len(_instances), len(STAGE.views())]
while len(STAGE.views()) > 3:
    time.sleep(0.05)
found, first = count(), globals().setdefault("first", count())
end = time.monotonic() + 20
while any(a > b for a, b in zip(found, first)) and time.monotonic() < end:  # threads end within a period
    time.sleep(0.1)
    found = count()
print(json.dumps(found))
"""


def kept(devtools: CDPSession) -> int:
    """How many views the page's memory has, with all their listeners, whether or not they are shown."""
    devtools.send("HeapProfiler.collectGarbage")
    prototype = devtools.send("Runtime.evaluate", {"expression": "HTMLElement.prototype"})["result"]["objectId"]
    found = devtools.send("Runtime.queryObjects", {"prototypeObjectId": prototype})["objects"]["objectId"]
    # prototypes are among them, which have no class list
    code = """function () {
      const isView = (one) => { try { return one.classList.contains("qnb-view"); } catch { return false; } };
      return this.filter(isView).length;
    }"""
    arguments = {"objectId": found, "functionDeclaration": code, "returnByValue": True}
    number: int = devtools.send("Runtime.callFunctionOn", arguments)["result"]["value"]
    devtools.send("Runtime.releaseObject", {"objectId": found})
    return number


def test_two_hundred_re_runs_leave_nothing_behind(write: Open) -> None:
    """Comms, threads, models and views in the kernel; views with their listeners in the page."""
    cells = [
        "import qnb\nfrom IPython.display import display\nsession = qnb.Session('memory:', workers=1)",
        "display(FakeBatch(4), session, session.workers)",
        COUNT,
    ]
    with write(*cells) as notebook:
        notebook.run_all()
        notebook.page.locator(".qnb-workers").wait_for()
        devtools = notebook.page.context.new_cdp_session(notebook.page)

        def count() -> tuple[list[int], int]:
            notebook.page.locator(".qnb-workers").wait_for()
            notebook.ask("(panel.content.activeCellIndex = 3, app.commands.execute('notebook:run-cell'))")
            notebook.wait_for_end()
            here: list[int] = json.loads(notebook.page.locator(".jp-OutputArea-output").last.inner_text())
            return here, kept(devtools)

        def again(times: int) -> None:
            code = (
                "(async () => { for (let run = 0; run < argument; run++) { panel.content.activeCellIndex = 2;"
                " await app.commands.execute('notebook:run-cell'); } })()"
            )
            notebook.ask(code, times)

        again(5)
        before, views = count()
        again(200)
        after, more_views = count()
        print("comms, threads, models, views:", before, after, "views in the page:", views, more_views)
        assert all(now <= then for now, then in zip(after, before, strict=True))
        assert more_views <= views + 3  # those of the last run may not be forgotten yet
        # ipywidgets says so of a view that is taken down while its output is being replaced; nothing is left of it
        assert [line for line in notebook.console if "processLuminoMessage" not in line] == []
