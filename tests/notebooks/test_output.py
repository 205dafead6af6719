"""What tasks print, in a notebook: in the cell that waits for them, while they run, and in no other cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.kernel import Kernel, Message, start_kernel

SETUP = """
import os, time, qnb
session = qnb.Session("sqlite:", workers=2, key="a key for these tests")
def talk(path):
    print("begun", path)
    while not os.path.exists(path):
        time.sleep(0.01)
    print("ended", path)
    return path
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with start_kernel(tmp_path_factory.mktemp("output")) as kernel:
        kernel.run(SETUP)
        yield kernel
        kernel.run("session.close()")


def stdout(messages: list[Message], request: str | None = None) -> str:
    """What was printed, by all cells or one."""
    texts = [
        message["content"]["text"]
        for message in messages
        if message["msg_type"] == "stream" and request in (None, message["parent_header"].get("msg_id"))
    ]
    return "".join(texts)


@pytest.mark.parametrize("waiting", ["future.result()", "await future", "future.exception()"])
def test_live_in_the_cell_that_waits(kernel: Kernel, tmp_path: Path, waiting: str) -> None:
    path = tmp_path / "open"
    heard = kernel.run(f"future = session.submit(talk, {str(path)!r})")
    assert stdout(heard) == "", "the cell that only submits is over: nothing comes into it"
    request = kernel.client.execute(f"_ = {waiting}")
    before = len(kernel.heard)
    kernel.until(lambda _: stdout(kernel.heard[before:], request) == f"begun {path}\n", 20)
    path.touch()
    kernel.until(
        lambda m: (
            m["msg_type"] == "status"
            and m["content"]["execution_state"] == "idle"
            and m["parent_header"].get("msg_id") == request
        ),
        20,
    )
    assert stdout(kernel.heard[before:], request) == f"begun {path}\nended {path}\n"
    assert stdout(kernel.heard[before:]) == stdout(kernel.heard[before:], request), "and in no other"
    assert stdout(kernel.run(f"_ = {waiting}")) == "", "it is shown once"
    assert kernel.value("future.output") == f"begun {path}\nended {path}\n"


def test_output_that_was_there_before(kernel: Kernel) -> None:
    kernel.run("future = session.submit(lambda: print('early'))")
    kernel.run("import concurrent.futures; _ = concurrent.futures.wait([future])")
    assert stdout(kernel.run("_ = future.result()")) == "early\n"


def test_a_key_shows_it_once(kernel: Kernel) -> None:
    """Whether or not anyone still holds the first submit's future."""
    kernel.run("import gc; once = session.task(key='told once')(lambda: print('told'))")
    assert stdout(kernel.run("once.submit().result(); gc.collect(); once.submit().result()")) == "told\n"


def test_a_batch_shows_it_in_its_view(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "open"
    kernel.run(f"batch = session.map(talk, [{str(path)!r}]); batch")

    def shown(message: Message) -> bool:
        parts = [content.get("rows") or {} for content in kernel.said(messages=[message])]
        said = [text for part in parts for _, _, texts in part.get("texts", ()) for text in texts]
        return any(f"begun {path}"[:30] in text for text in said)

    if not shown(kernel.ready()):  # it may begin with that
        kernel.until(shown, 20)
    path.touch()
    heard = kernel.run("_ = batch.results()")
    assert stdout(heard) == ""
    assert kernel.value("list(batch.df.output)") == [f"begun {path}\nended {path}\n"]


SHOW = """
def show(path):
    from IPython.display import HTML
    print("before")
    display(HTML("<b>first</b>"))
    print("between")
    handle = display("working", display_id=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    handle.update("worked")
    print("after")
"""


def shown(messages: list[Message], request: str | None = None) -> list[str]:
    """What was printed and displayed, in order; of updates what they say."""
    found = []
    for message in messages:
        if request not in (None, message["parent_header"].get("msg_id")):
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            found += content["text"].splitlines()
        elif kind in ("display_data", "update_display_data"):
            data = content["data"]
            text = data.get("text/html") or ("png" if "image/png" in data else data["text/plain"])
            found.append(f"{text} again" if kind.startswith("update") else text)
    return found


@pytest.mark.parametrize("waiting", ["future.result()", "await future"])
def test_displays_are_live_in_the_cell_that_waits(kernel: Kernel, tmp_path: Path, waiting: str) -> None:
    path = tmp_path / "open"
    heard = kernel.run(f"{SHOW}\nfuture = session.submit(show, {str(path)!r})")
    assert shown(heard) == []
    request = kernel.client.execute(f"_ = {waiting}")
    before = len(kernel.heard)
    first = ["before", "<b>first</b>", "between", "'working'"]
    kernel.until(lambda _: shown(kernel.heard[before:], request) == first, 20)
    path.touch()
    wanted = [*first, "'worked' again", "after"]
    kernel.until(lambda _: sorted(shown(kernel.heard[before:], request)) == sorted(wanted), 20)
    kernel.listen(0.3)
    assert sorted(shown(kernel.heard[before:])) == sorted(wanted), "and in no other"
    assert shown(kernel.run(f"_ = {waiting}")) == [], "it is shown once"
    assert shown(kernel.run("future.displays[0]; display(future.displays[0])")) == ["<b>first</b>"]


def test_a_figure_of_a_task(kernel: Kernel) -> None:
    code = """
    def plot():
        import matplotlib.pyplot as plt
        print("a figure")
        plt.plot([1, 2])
        plt.show()
    session.submit(plot).result()
    """
    assert shown(kernel.run(code, 60)) == ["a figure", "png"]


def test_threads_of_the_kernel_show_in_the_cell_that_waits(kernel: Kernel) -> None:
    kernel.run("here = qnb.Session('memory:shown-in-kernel', key='a key for these tests')")
    heard = kernel.run("""
    def show(n):
        print("one")
        display(n)
        import matplotlib.pyplot as plt
        fig, _ = plt.subplots()
        display(fig)
        plt.close(fig)
        return n
    future = here.submit(show, 17)
    """)
    heard += kernel.run("import concurrent.futures; _ = concurrent.futures.wait([future])")
    assert shown(heard) == []
    assert shown(kernel.run("_ = future.result()")) == ["one", "17", "png"]
    kernel.run("here.close()")
