"""Run the notebooks of this folder for real and keep their outputs, fit to be committed.

    python notebooks/refresh.py [NAME.ipynb ...]

They run on the embedded broker in a temporary folder. No widget state is kept (a batch leaves HTML and text), no
timings, and nothing that names this machine's folders.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
# Run after the last cell, and not kept: what still goes on comes to its end, and views to their last state.
LAST = """
import qnb
if session := qnb.current_session():
    for batch in list(session.batches.values()):
        batch.wait(60)
    session.close()
"""


def refresh(path: Path) -> None:
    """Run one notebook and write it back."""
    book = nbformat.read(path, as_version=4)
    os.environ |= {"QNB_BROKER": "", "QNB_BACKEND": "", "QNB_KEY": "only for these outputs"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            book,
            timeout=300,
            kernel_name="python3",
            store_widget_state=False,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        book.cells.append(nbformat.v4.new_code_cell(LAST))
        client.execute()
        book.cells.pop()
        tidy(book)
        refuse_paths(path, book, folder)
    nbformat.write(book, path)


def tidy(book: NotebookNode) -> None:
    """Leave out what only this run's kernel or front end knows."""
    book.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        language_info={"name": "python"},
    )
    for cell in book.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)


def refuse_paths(path: Path, book: NotebookNode, folder: str) -> None:
    """Fail when an output names a folder of this machine."""
    outputs = str([cell.get("outputs") for cell in book.cells])
    for private in (folder, str(HERE.parent), sys.prefix, str(Path.home())):
        if private != "/" and private in outputs:
            raise SystemExit(f"{path.name}: an output names {private}")


def main(names: Sequence[str]) -> None:
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        refresh(path)


if __name__ == "__main__":
    main(sys.argv[1:])
