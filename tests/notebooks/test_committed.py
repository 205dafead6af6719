"""The notebooks as they lie in the repository. What their cells give is checked by nbval, which runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
TAGS = {"nbval-ignore-output", "nbval-check-output", "raises-exception"}
# All that these show is of the moment and of the broker.
LIVE = {"03_choosing_a_broker", "06_dashboard"}


@pytest.fixture(params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def book(request: pytest.FixtureRequest) -> Any:
    import nbformat

    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found


def outputs(book: Any) -> list[Any]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def test_it_was_run_from_top_to_bottom(book: Any) -> None:
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    meant = [cell for cell in code if "raises-exception" in cell.metadata.get("tags", [])]
    failed = [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    assert failed == meant


def test_it_carries_no_widget(book: Any) -> None:
    assert "widgets" not in book.metadata
    assert not any("widget" in kind for output in outputs(book) for kind in output.get("data", {}))


def test_its_batches_ended_as_tables(book: Any) -> None:
    tables = [output.data for output in outputs(book) if "rows, the last that changed" in str(output.get("data"))]
    assert tables
    assert all(set(data) == {"text/html", "text/plain"} and " calls" in data["text/plain"] for data in tables)


def test_it_names_no_folder_of_a_machine(book: Any) -> None:
    assert not re.search(r"(/home/|/root/|/Users/|/tmp/|[A-Z]:\\\\)", str(outputs(book)))


def test_what_nbval_is_told(book: Any, request: pytest.FixtureRequest) -> None:
    tags = [set(cell.metadata.get("tags", [])) for cell in book.cells if cell.cell_type == "code"]
    assert set().union(*tags) <= TAGS
    if request.node.callspec.id not in LIVE:
        assert sum("nbval-check-output" in some for some in tags) >= 3
