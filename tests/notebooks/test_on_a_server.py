"""The notebooks do not know what they run on: one of them on a real Redis, with the outputs it has on a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.services import Services

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "05_failures_retries_attach.ipynb"


def checked(book: Any) -> dict[str, list[str]]:
    """What the cells that nbval compares have printed and shown, by cell."""
    cells = [cell for cell in book.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return {
        cell.id: [output["text"] if "text" in output else output["data"]["text/plain"] for output in cell.outputs]
        for cell in cells
    }


@pytest.mark.slow
def test_a_notebook_gives_on_redis_what_it_gives_on_a_file(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = services.redis(appendonly=True)
    monkeypatch.setenv("QNB_BROKER", server.url)
    monkeypatch.delenv("QNB_BACKEND", raising=False)
    monkeypatch.setenv("QNB_KEY", "a key for this test")
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(NOTEBOOK, as_version=4)
    meant = checked(book)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=60, kernel_name="python3", resources=resources).execute()
    assert checked(book) == meant
    assert len(meant) >= 8
    assert int(server.tell("DBSIZE")) > 0
    assert not (tmp_path / ".qnb").exists(), "it made an embedded file beside itself"
