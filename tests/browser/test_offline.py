"""No view asks anything of another host: no CDN, no network."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import written
from tests.browser.lab import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]
CELLS = (
    "import qnb\nsession = qnb.Session('memory:', workers=2)\nbatch = session.map(abs, range(9))\nbatch",
    "session",
    "session.workers",
    "session.events()",
    "qnb.brokers()",
    "from qnb.notebook import runs_view, queues_view\nruns_view.display(session)",
    "queues_view.display(session)",
)
OUTSIDE = "http://qnb.example/anything"


def test_every_view_comes_up_and_asks_nobody(server: Server, browser: Browser) -> None:
    with written(server, browser, "offline.ipynb", *CELLS) as notebook:
        notebook.run_all()
        for view in ("batch", "session", "workers", "events", "brokers", "runs", "queues"):
            expect(notebook.page.locator(f".qnb-{view}")).to_be_visible()
        assert notebook.outside == []
        assert notebook.console == []
        # one that is asked is counted, and is not there
        assert notebook.page.evaluate(f"() => fetch('{OUTSIDE}').then(() => 'there', () => 'not there')") == "not there"
        assert notebook.outside == [OUTSIDE]
