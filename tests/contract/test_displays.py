"""What tasks show: figures, HTML, anything given to `display`, kept by call and there while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.codec import displays as kept
from tests.contract.conftest import until

BROKERS = ("sqlite", "redis")  # threads of this process show where the process does: tests/notebooks/test_output.py
PNG = b"\x89PNG"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[str]:
    """A file for which tasks wait; made at the end, so that no lane stays blocked."""
    path = tmp_path / "open"
    yield str(path)
    path.touch()


def bundles(future: qnb.Future) -> list[dict[str, Any]]:
    return [display.data for display in future.displays]


def test_displays_stand_between_what_is_printed(session: qnb.Session) -> None:
    def show() -> int:
        from IPython.display import HTML
        from IPython.display import display as imported

        print("one")
        imported(HTML("<b>two</b>"), metadata={"text/html": {"isolated": True}})
        print("three")
        display({"four": 4})  # type: ignore[name-defined] # noqa: F821 - IPython puts it among the builtins
        return 5

    future = session.submit(show)
    assert future.result(30) == 5
    html, plain = future.displays
    assert html.data["text/html"] == "<b>two</b>"
    assert html.metadata == {"text/html": {"isolated": True}}
    assert plain.data == {"text/plain": "{'four': 4}"}
    assert future.output == "one\nthree\n"
    assert [html.at, plain.at] == [4, 10]
    assert html._repr_mimebundle_() == (html.data, html.metadata), "it is shown by its own name, too"


def test_figures(session: qnb.Session) -> None:
    def plot(close: bool) -> None:
        import matplotlib.pyplot as plt

        plt.plot([1, 2])
        if close:
            plt.show()

    def show() -> None:
        import matplotlib.pyplot as plt

        plt.show()

    shown, left, after = session.submit(plot, True), session.submit(plot, False), session.submit(show)
    for future in (shown, left, after):
        future.result(30)
    [figure] = bundles(shown)
    assert figure["image/png"].startswith(PNG)
    assert not left.displays
    assert not after.displays, "a figure that another call has left open"


def test_each_call_of_a_batch_has_its_own(session: qnb.Session) -> None:
    def odd(number: int) -> None:
        from IPython.display import display

        if number % 2:
            display(number)

    batch = session.map(odd, range(200))
    assert batch.wait(30)
    wanted = [[{"text/plain": str(number)}] if number % 2 else [] for number in range(200)]
    assert [bundles(batch[number]) for number in range(200)] == wanted
    again = session.attach(batch.run)
    assert [bundles(again[number]) for number in range(200)] == wanted


def test_a_call_that_failed_has_shown(session: qnb.Session) -> None:
    def fail() -> None:
        from IPython.display import display

        display("before")
        raise ValueError("x")

    future = session.submit(fail)
    assert isinstance(future.exception(20), ValueError)
    assert bundles(future) == [{"text/plain": "'before'"}]


def test_coroutines_side_by_side(session: qnb.Session) -> None:
    async def show(number: int) -> None:
        import asyncio

        from IPython.display import display

        for step in range(2):
            display((number, step))
            await asyncio.sleep(0.01)

    batch = session.map(show, range(4))
    assert batch.wait(30)
    for number in range(4):
        assert bundles(batch[number]) == [{"text/plain": f"({number}, {step})"} for step in range(2)]


def test_displays_while_it_runs(session: qnb.Session, opened: str) -> None:
    def show(path: str) -> None:
        import time

        from IPython.display import display

        handle = display("first", display_id=True)
        display("second")
        time.sleep(0.3)
        handle.update("third")
        while not os.path.exists(path):
            time.sleep(0.01)
        display(b"last")

    future, batch = session.submit(show, opened), session.map(show, [opened])
    wanted = [{"text/plain": "'third'"}, {"text/plain": "'second'"}]
    until(lambda: bundles(future) == wanted and bundles(batch[0]) == wanted)
    assert {future.state, batch[0].state} == {"running"}
    Path(opened).touch()
    batch.results(20)
    future.result(20)
    assert bundles(future) == bundles(batch[0]) == [*wanted, {"text/plain": "b'last'"}]


def test_much_is_bounded_and_told(session: qnb.Session) -> None:
    def flood(count: int, size: int) -> None:
        from IPython.display import display

        for number in range(count):
            display({"text/plain": f"{number} " + "x" * size}, raw=True)

    future = session.submit(flood, 50, 1 << 20)
    future.result(60)
    shown = [str(bundle["text/plain"]) for bundle in bundles(future)]
    assert sum(map(len, shown)) <= kept.KEPT
    assert shown[0].startswith("0 x")
    assert shown[-1].startswith("49 x")
    [told] = [text for text in shown if "left out" in text]
    assert told == f"… {50 - (len(shown) - 1)} displays are left out: they are too many …"
    large = session.submit(flood, 1, kept.KEPT)
    large.result(60)
    assert bundles(large) == [{"text/plain": "… a display is left out: it is too large …"}]


def test_what_cannot_be_sent_is_left_out(session: qnb.Session) -> None:
    def show() -> str:
        from IPython.display import display

        widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}, "text/plain": "a widget"}
        display(widget, raw=True)
        display({"application/json": {1, 2}, "text/plain": "a set", "text/html": {"a": object()}}, raw=True)
        return "fine"

    future = session.submit(show)
    assert future.result(20) == "fine"
    assert bundles(future)[0] == {"text/plain": "a widget"}
    assert bundles(future)[1]["text/plain"] == "a set"
    assert "text/html" not in bundles(future)[1]
