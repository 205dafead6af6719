"""What the views cost the browser: frames while 100,000 rows are scrolled, and what is left after 200 re-runs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, CDPSession, Page

from tests.browser.conftest import Open, written
from tests.browser.lab import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]
FRAME = 1000 / 60
SPEED, DISTANCE = 20_000, 60_000  # pixels: fourteen rows a frame
WORK = {
    "script": ("EventDispatch", "FireAnimationFrame"),
    "style": ("UpdateLayoutTree",),
    "layout": ("Layout",),
    "paint": ("PrePaint", "Paint", "Layerize", "Commit"),
}
FRAMES = """() => {
  const begun = performance.now();
  window.drawn = { frames: 0, rate: () => (1000 * window.drawn.frames) / (performance.now() - begun) };
  const { drawn } = window;
  const step = () => {
    if (window.drawn !== drawn) return;
    drawn.frames++;
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}"""
# The kernel's own dates of what it sends to views.
LISTEN = """(() => {
  window.sent = [];
  panel.sessionContext.session.kernel.iopubMessage.connect((_, message) => {
    const kind = message.content?.data?.content?.kind;
    if (["delta", "snapshot", "beat"].includes(kind)) window.sent.push(message.header.date);
  });
})()"""


class Cost(NamedTuple):
    """Milliseconds of CPU of the page's main thread for each frame, and how many frames there were in a second."""

    frames: int
    rate: float
    all: float
    parts: dict[str, float]
    layouts: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {time:.1f}" for name, time in self.parts.items())
        return f"{self.rate:.0f} frames a second of {self.all:.1f} ms of CPU each ({parts}), {self.layouts} layouts"


def cost_of(trace: bytes, frames: int, rate: float) -> Cost:
    """From Chromium's own trace: the main thread of the page that did most, and what it was spent on."""
    events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    spent: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    layouts: Counter[int] = Counter()
    for event in events:
        process = event["pid"]
        if event.get("ph") == "X" and names.get((process, event["tid"])) == "CrRendererMain":
            spent[process][event["name"]] += event.get("tdur", 0) / 1000 / frames
            layouts[process] += event["name"] == "Layout"
    page = max(spent, key=lambda process: spent[process]["RunTask"])
    parts = {part: sum(spent[page][name] for name in kinds) for part, kinds in WORK.items()}
    return Cost(frames, rate, spent[page]["RunTask"], parts, layouts[page])


def scroll(browser: Browser, page: Page, place: dict[str, float]) -> Cost:
    """Turn the wheel hard at a place of a page, for three seconds, with Chromium tracing."""
    devtools = page.context.new_cdp_session(page)
    browser.start_tracing(page=page, categories=["-*", "devtools.timeline", "disabled-by-default-devtools.timeline"])
    page.evaluate(FRAMES)
    devtools.send("Input.synthesizeScrollGesture", {**place, "yDistance": -DISTANCE, "speed": SPEED})
    frames, rate = page.evaluate("() => [window.drawn.frames, window.drawn.rate()]")
    trace = browser.stop_tracing()
    page.evaluate("() => void (window.drawn = null)")
    devtools.detach()
    return cost_of(trace, frames, rate)


@pytest.mark.alone
def test_a_hundred_thousand_rows_scroll_at_sixty_frames(server: Server, browser: Browser) -> None:
    """By a hand that turns the wheel hard, through 2,500 rows in three seconds, while a thousand calls a second end.

    What counts is the page's own time of CPU, which others that use this machine change little. The frames that there
    were are printed beside those of an empty page that is scrolled alike: that many the machine has to give.
    """
    cells = ["from tests.notebooks.fake_batch import FakeBatch", "FakeBatch(100_000, failing=0.01).play(100, step=20)"]
    with written(server, browser, "scroll.ipynb", *cells) as notebook:
        notebook.run_all()
        grid = notebook.page.locator(".qnb-live .qnb-grid")
        grid.locator(".qnb-grid-body [role=row]").first.wait_for()
        box = grid.bounding_box()
        assert box is not None
        notebook.ask(LISTEN)
        view = scroll(browser, notebook.page, {"x": box["x"] + 100, "y": box["y"] + 100})
        assert grid.evaluate("(grid) => grid.scrollTop") > DISTANCE / 2
        assert grid.locator(".qnb-grid-body > *").count() < 30
        sent = notebook.page.evaluate("() => window.sent")
        assert notebook.console == []
    with browser.new_context() as context:
        page = context.new_page()
        page.set_content("<div style='height: 2400000px'></div>")
        empty = scroll(browser, page, {"x": 100, "y": 100})
    print(f"\nthe view:      {view}\nan empty page: {empty}")
    assert view.all < FRAME
    assert view.parts["script"] + view.parts["style"] + view.parts["layout"] < FRAME / 2
    assert view.layouts <= 2 * view.frames, "the page is laid out while it is being changed"
    dates = [datetime.fromisoformat(date.replace("Z", "+00:00")) for date in sent]
    print(f"{len(dates)} messages in {(dates[-1] - dates[0]).total_seconds():.1f} s")
    assert len(dates) > 5
    assert len(dates) - 1 <= 10 * (dates[-1] - dates[0]).total_seconds()


COUNT = """
import gc, json, threading
from comm import get_comm_manager
from ipywidgets.widgets.widget import _instances
from qnb.notebook.stage import STAGE
def count():
    gc.collect()
    return [len(get_comm_manager().comms), threading.active_count(), len(_instances), len(STAGE.views())]
while len(STAGE.views()) > 2:
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


def listeners(devtools: CDPSession) -> int:
    """How many event listeners there are in the page, those of JupyterLab with them."""
    metrics = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
    return int(metrics["JSEventListeners"])


def test_two_hundred_re_runs_leave_nothing_behind(write: Open) -> None:
    """Comms, threads, models and views in the kernel; views and listeners in the page."""
    cells = [
        "import qnb\nfrom IPython.display import display\nsession = qnb.Session('memory:', workers=1)",
        "display(FakeBatch(4), session.workers)",
        COUNT,
    ]
    with write(*cells) as notebook:
        notebook.run_all()
        notebook.page.locator(".qnb-workers").wait_for()
        devtools = notebook.page.context.new_cdp_session(notebook.page)
        devtools.send("Performance.enable")

        def count() -> tuple[list[int], int]:
            notebook.page.locator(".qnb-workers").wait_for()
            notebook.ask("(panel.content.activeCellIndex = 3, app.commands.execute('notebook:run-cell'))")
            notebook.wait_for_end()
            here: list[int] = json.loads(notebook.page.locator(".jp-OutputArea-output").last.inner_text())
            return here, kept(devtools)

        def again(times: int) -> int:
            code = (
                "(async () => { for (let run = 0; run < argument; run++) { panel.content.activeCellIndex = 2;"
                " await app.commands.execute('notebook:run-cell'); } })()"
            )
            notebook.ask(code, times)
            devtools.send("HeapProfiler.collectGarbage")
            return listeners(devtools)

        again(5)
        before, views = count()
        heard = again(5)  # another cell that becomes the active one has hundreds of JupyterLab's
        more_heard = again(200)
        after, more_views = count()
        print("\ncomms, threads, models, views:", before, after)
        print("in the page, views:", views, more_views, "listeners:", heard, more_heard)
        assert all(now <= then for now, then in zip(after, before, strict=True))
        assert more_views <= views + 2  # those of the last run may not be forgotten yet
        assert more_heard < heard + 200  # a view has dozens
        assert notebook.console == []
