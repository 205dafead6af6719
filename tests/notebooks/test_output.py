"""What tasks print, in a notebook: in the cell that waits for them, while they run, and in no other cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_a_batch_shows_it_in_its_view(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "open"
    kernel.run(f"batch = session.map(talk, [{str(path)!r}]); batch")

    def shown(message: Message) -> bool:
        rows: list[Any] = [row for content in kernel.said(messages=[message]) for row in content.get("rows", [])]
        return any(f"begun {path}"[:30] in row[3] for row in rows)

    kernel.until(shown, 20)
    path.touch()
    heard = kernel.run("_ = batch.results()")
    assert stdout(heard) == ""
    assert kernel.value("list(batch.df.output)") == [f"begun {path}\nended {path}\n"]
