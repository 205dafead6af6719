"""`%debug` after a remote failure, and after a replay: in the lines of the cell that defined the task."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.kernel import Kernel, start_kernel

SETUP = """
import qnb
session = qnb.Session("sqlite:", workers=1, key="a key for these tests")
"""
CELL = """
def helper(x):
    half = x / 2
    raise ValueError(f"no {half}")

def task(n):
    return helper(n + 1)

async def later(n):
    return helper(n + 1)
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with start_kernel(tmp_path_factory.mktemp("debug")) as kernel:
        kernel.run(SETUP)
        kernel.run(CELL)
        yield kernel
        kernel.run("session.close()")


def fails(kernel: Kernel, code: str) -> str:
    """A cell that raises; its traceback as shown."""
    with pytest.raises(AssertionError) as caught:
        kernel.run(code)
    return re.sub(r"\x1b\[[0-9;]*m", "", str(caught.value))


def debug(kernel: Kernel, *commands: str) -> list[str]:
    """What the debugger says when `%debug` opens it, and to each command."""
    client, answers = kernel.client, []
    request = client.execute("%debug", allow_stdin=True)
    for command in [*commands, "q"]:
        asked = client.get_stdin_msg(timeout=20)
        assert asked["msg_type"] == "input_request"
        answers.append(heard(kernel, request))
        client.input(command)
    answers.append("")
    kernel.until(
        lambda m: (
            m["msg_type"] == "status"
            and m["content"]["execution_state"] == "idle"
            and m["parent_header"].get("msg_id") == request
        ),
        20,
    )
    return answers


def heard(kernel: Kernel, request: str) -> str:
    """What this cell has printed since the last time."""
    text = ""
    while True:
        try:
            message = kernel.client.get_iopub_msg(timeout=0.5)
        except queue.Empty:
            return re.sub(r"\x1b\[[0-9;]*m", "", text)
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == request:
            text += message["content"]["text"]


def where(kernel: Kernel, function: str) -> tuple[str, int]:
    """The file and the first line of a function of the notebook, as the kernel knows them."""
    found: tuple[str, int] = kernel.value(f"({function}.__code__.co_filename, {function}.__code__.co_firstlineno)")
    return found


@pytest.mark.parametrize("how", ["session.submit(task, 4).result()", "session.map(task, [4]).results()"])
def test_after_a_remote_failure(kernel: Kernel, how: str) -> None:
    file, line = where(kernel, "helper")
    assert 'raise ValueError(f"no {half}")' in fails(kernel, how)
    opened, up, _ = debug(kernel, "up")
    assert f"{file}({line + 2})helper()" in opened
    assert re.search(rf"--> +{line + 2} .*raise ValueError", opened), opened
    task_file, task_line = where(kernel, "task")
    assert f"{task_file}({task_line + 1})task()" in up


@pytest.mark.parametrize("function", ["task", "later"])
def test_after_a_replay(kernel: Kernel, tmp_path: Path, function: str) -> None:
    file, line = where(kernel, "helper")
    kernel.run(f"future = session.submit({function}, 4); _ = future.exception()")
    assert 'raise ValueError(f"no {half}")' in fails(kernel, "future.replay()")
    opened, half, up, n, _ = debug(kernel, "p half", "up", "p n")
    assert f"{file}({line + 2})helper()" in opened
    assert "2.5" in half
    task_file, task_line = where(kernel, function)
    assert f"{task_file}({task_line + 1}){function}()" in up
    assert "4" in n


def test_of_another_kernel(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run that was attached: the cell is not in this kernel, and its lines are."""
    run = kernel.value("(lambda b: (b.wait(), b.run)[1])(session.map(task, [4]))")
    folder = Path(kernel.value("__import__('os').getcwd()"))
    with start_kernel(folder) as other:
        other.run(f"{SETUP}\nbatch = session.attach({run!r})")
        assert 'raise ValueError(f"no {half}")' in fails(other, "batch[0].replay()")
        opened, value, _ = debug(other, "p half")
        assert "helper()" in opened
        assert 'raise ValueError(f"no {half}")' in opened
        assert "2.5" in value
        other.run("session.close()")
