"""notebooks/in_terminal.py, which `make demo` runs."""

from __future__ import annotations

import os
import pty
import re
import runpy
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "notebooks" / "in_terminal.py"
BATCH = """import qnb, time
session = qnb.Session("memory:", workers=2)
batch = session.map(lambda x: time.sleep(0.05) or x * x, range(60))
batch"""


def write(folder: Path, *cells: str, **tags: list[str]) -> Path:
    """A notebook; `raises` has the cells that are meant to fail."""
    import nbformat

    book = nbformat.v4.new_notebook()
    for source in cells:
        make = nbformat.v4.new_markdown_cell if source.startswith("#") else nbformat.v4.new_code_cell
        book.cells.append(make(source))
        if source in tags.get("raises", []):
            book.cells[-1].metadata.tags = ["raises-exception"]
    path = folder / "some.ipynb"
    nbformat.write(book, path)
    return path


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(entry or os.getcwd() for entry in [str(ROOT), *sys.path])
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(folder), "PYTHONPATH": path, "QNB_KEY": "a key for these tests"} | more


def run(folder: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=300, check=False
    )


FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
SHORT = ("# One\ntext\n## Two", "x = 6", "%load_ext qnb\nx * 7", "1 / 0", "print('after')")
CELLS = (*SHORT, BATCH, "sum(batch.results())", FIGURE, "nobody", "print('never')")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A notebook of all sorts of cells, the last but one of which fails; its folder, and what came of it."""
    folder = tmp_path_factory.mktemp("terminal")
    notebook = write(folder, *CELLS, raises=["1 / 0"])
    return folder, run(folder, notebook, "--figures", folder / "here")


Ran = tuple[Path, subprocess.CompletedProcess[str]]


def test_headings_code_and_values_are_printed(ran: Ran) -> None:
    lines = ran[1].stdout.splitlines()
    assert lines[:7] == ["", "One", "", "Two", "  | x = 6", "  | %load_ext qnb", "  | x * 7"], ran[1].stderr
    assert lines[7] == "42"


def test_a_batch_is_followed_line_by_line_then_its_table(ran: Ran) -> None:
    done = ran[1]
    lines = done.stdout.splitlines()
    progress = [line for line in lines if re.match(r"\[[#x>.]{30}\]  \d+ of 60 · \d+ %", line)]
    assert 1 <= len(progress) <= 8
    assert "\r" not in done.stdout
    assert "\033" not in done.stdout
    assert any(re.match(r"<lambda>  60 calls  in ", line) for line in lines)
    assert "  59  59    3481  done" in done.stdout
    assert str(sum(x * x for x in range(60))) in lines


def test_a_failing_cell_ends_it_with_one(ran: Ran) -> None:
    done = ran[1]
    assert done.returncode == 1
    assert "NameError: name 'nobody' is not defined" in done.stdout
    assert "never" not in done.stdout
    assert done.stderr == "some.ipynb: this cell failed\n"


def test_a_cell_that_is_meant_to_fail_does_not(ran: Ran) -> None:
    assert "ZeroDivisionError: division by zero" in ran[1].stdout
    assert "\nafter\n" in ran[1].stdout


def test_figures_become_files(ran: Ran) -> None:
    folder, done = ran
    assert f"the figure is in {folder / 'here' / 'figure-1.png'}\n" in done.stdout
    assert (folder / "here" / "figure-1.png").stat().st_size > 1000


def in_a_terminal(folder: Path, *command: str, hidden: tuple[str, ...] = ()) -> str:
    """What a program writes to a terminal of 90 columns; `hidden` libraries cannot be imported there."""
    for name in hidden:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not there')")
    more = environment(folder, COLUMNS="90", LINES="30", TERM="xterm")
    more["PYTHONPATH"] = os.pathsep.join([str(folder), more["PYTHONPATH"]])
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 90))
    child = subprocess.Popen([sys.executable, *command], cwd=folder, env=more, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux's way to say that the other end is closed
    finally:
        os.close(ours)
    assert child.wait(10) == 0, shown.decode()
    return shown.decode()


def test_in_a_terminal_progress_stays_in_its_line(tmp_path: Path) -> None:
    notebook = write(tmp_path, BATCH)
    shown = in_a_terminal(tmp_path, str(PROGRAM), str(notebook), hidden=("rich", "tqdm"))
    updates = re.findall(r"\r(\[[#x>.]{30}\][^\r\n]*)\033\[K", shown)
    assert len(updates) >= 5
    assert max(map(len, updates)) < 90
    assert "60 calls" in shown


SCRIPT = """
import time, qnb

def work(n):
    time.sleep(0.03)
    if n % 10 == 7:
        raise ValueError("seven")

if __name__ == "__main__":
    session = qnb.Session("memory:", workers=2)
    {wait}
    session.close()
"""
WAYS = ("session.map(work, range(60)).wait(progress=True)", "qnb.show(session.map(work, range(60)))")


@pytest.fixture(scope="module", params=[(), ("rich",), ("rich", "tqdm")], ids=["rich", "tqdm", "plain"])
def waited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str]]:
    """A script that waits in both ways in a terminal, where some libraries are not: how many of them, and what was to
    be seen for each way."""
    folder = tmp_path_factory.mktemp("script")
    program = folder / "program.py"
    program.write_text(SCRIPT.format(wait="\n    print('-- the other --', flush=True)\n    ".join(WAYS)))
    shown = in_a_terminal(folder, str(program), hidden=request.param)
    return len(request.param), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split("-- the other --")


SEEN = (
    r"work\S*  \d+ of 60 · \d+ %",
    r"work: +\d+%\|.*\| \d+/60 \[.*\d failed\]",
    r"\[[#x>.]{30}\]  \d+ of 60 · \d+ %  .*  \d failed",
)


@pytest.mark.parametrize("way", range(len(WAYS)), ids=WAYS)
def test_a_script_shows_progress_with_what_is_installed(waited: tuple[int, list[str]], way: int) -> None:
    hidden, parts = waited
    assert len(parts) == len(WAYS)
    plain = parts[way]
    assert re.search(SEEN[hidden], plain), plain
    if not hidden:
        assert "━" in plain
        assert re.search(r"● \d+ done   ● \d failed", plain)
        assert re.search(r"ValueError × \d: seven", plain)


def test_a_timeout_of_a_wait_that_shows(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SCRIPT.format(wait="print(session.map(work, range(60)).wait(0.3, progress=True))"))
    command, env = [sys.executable, str(program)], environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False\n", done.stderr


def test_no_such_notebook_is_a_matter_of_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")  # which the program does too
    program = runpy.run_path(str(PROGRAM))
    with pytest.raises(SystemExit) as ended:
        program["main"](["nothing.ipynb"])
    assert ended.value.code == 2
    assert "no such notebook: nothing.ipynb" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_runs_with_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    done = run(
        tmp_path, ROOT / "notebooks" / "01_first_tasks.ipynb", HOME="/proc/1", PYTHONWARNINGS="error::UserWarning"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    assert "1,560 calls" in done.stdout
    assert "ValueError: a density lies between 0 and 1, 1.7 does not" in done.stdout
    assert "the figure is in" in done.stdout
