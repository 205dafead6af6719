"""Run a notebook's cells in the terminal, as `make demo` does: headings, live progress of each batch, results.

    python notebooks/in_terminal.py notebooks/01_first_tasks.ipynb [--figures FOLDER]

The code cells run one after the other in one namespace, magics and all. Where a cell shows a batch, its progress is
drawn in place until it is over, or printed once a second where the output is no terminal. Figures are saved as files,
which are named. The exit code is 1 when a cell fails that is not meant to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the imports below: where the home folder cannot be written to, these would complain.
if not os.access(Path(os.environ.get("HOME") or "/nonexistent"), os.W_OK):
    SCRATCH = tempfile.mkdtemp(prefix="qnb-demo-")
    for name in ("IPYTHONDIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        os.environ.setdefault(name, os.path.join(SCRATCH, name.lower()))
os.environ["MPLBACKEND"] = "agg"

import pandas
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

import qnb
from qnb.notebook.fallback import snapshot_text
from qnb.notebook.snapshot import take
from qnb.notebook.terminal import follow

WIDTH = shutil.get_terminal_size((100, 24)).columns


class Results(DisplayHook):
    """Shows what a cell gives without a prompt before it."""

    def write_output_prompt(self) -> None:
        pass


class Shell(InteractiveShell):
    """IPython without a terminal of its own."""

    displayhook_class = Type(Results)


class Screen:
    """Text, with emphasis where the output is a terminal."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()

    def strong(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if self.live else f"\n{text}", flush=True)

    def quiet(self, text: str) -> None:
        for line in text.splitlines():
            print(f"\033[2m  │ {line}\033[0m" if self.live else f"  | {line}", flush=True)

    def follow(self, batch: qnb.Batch) -> None:
        """Show a batch until it is over, then its last rows."""
        follow(batch, file=sys.stdout)
        print(snapshot_text(take(batch), WIDTH), flush=True)


def make_shell(screen: Screen) -> InteractiveShell:
    """A shell that keeps no history and follows batches on this screen."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "linux" if screen.live else "nocolor"
    shell: InteractiveShell = Shell.instance(config=config)
    pandas.options.display.width, pandas.options.display.max_columns = WIDTH, 20
    shell.display_formatter.ipython_display_formatter.for_type(qnb.Batch, screen.follow)
    return shell


class Figures:
    """Saves the figures that cells leave open."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._number = 0

    def save(self) -> None:
        """Those that are open now; says where."""
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else ():
            self._folder = self._folder or Path(tempfile.mkdtemp(prefix="qnb-figures-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._number += 1
            path = self._folder / f"figure-{self._number}.png"
            pyplot.figure(number).savefig(path, dpi=120)
            pyplot.close(number)
            print(f"the figure is in {path}", flush=True)


def show_markdown(screen: Screen, source: str) -> None:
    for line in source.splitlines():
        if line.startswith("#"):
            screen.strong(line.lstrip("# "))


@dataclass(frozen=True)
class Cell:
    """One of a notebook's."""

    kind: str
    source: str
    tags: Sequence[str]


def read(notebook: Path) -> list[Cell]:
    """The cells of a notebook. nbformat would check it too, and for that load what takes longer than all the rest."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [Cell(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def run_cell(shell: InteractiveShell, screen: Screen, cell: Cell, figures: Figures) -> bool:
    """Run one code cell. True when it did what it was meant to."""
    screen.quiet(cell.source)
    result = shell.run_cell(cell.source, store_history=True)
    figures.save()
    return result.success or "raises-exception" in cell.tags


def run(notebook: Path, figures: Figures) -> int:
    """Run the notebook from top to bottom, or to the cell that fails."""
    screen = Screen()
    shell = make_shell(screen)
    begun = time.monotonic()
    try:
        for cell in read(notebook):
            if cell.kind == "markdown":
                show_markdown(screen, cell.source)
            elif cell.kind == "code" and not run_cell(shell, screen, cell, figures):
                print(f"{notebook.name}: this cell failed", file=sys.stderr)
                return 1
    finally:
        if session := qnb.current_session():
            session.close()
    screen.strong(f"{notebook.name}: {time.monotonic() - begun:.0f} s")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="where figures are saved; a temporary one else")
    chosen = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows only ASCII
    if not chosen.notebook.is_file():
        parser.error(f"no such notebook: {chosen.notebook}")
    return run(chosen.notebook, Figures(chosen.figures))


if __name__ == "__main__":
    sys.exit(main())
