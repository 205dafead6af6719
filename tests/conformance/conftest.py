"""One place for each test: a broker or backend, fresh and empty, as it is registered in tests/services.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.help import Place
from tests.services import BACKENDS, BROKERS, Case, Services


@pytest.fixture(params=BROKERS, ids=lambda case: case.label)
def case(request: pytest.FixtureRequest) -> Case:
    """The broker under test."""
    found: Case = request.param
    return found


@pytest.fixture(params=BACKENDS, ids=lambda case: case.label)
def backend_case(request: pytest.FixtureRequest) -> Case:
    """The backend under test."""
    found: Case = request.param
    return found


@pytest.fixture
def place(case: Case, services: Services) -> Iterator[Place]:
    """An empty place of the broker under test."""
    made = Place(case.place(services), case)
    yield made
    made.close()


@pytest.fixture
def vault(backend_case: Case, services: Services) -> Iterator[Place]:
    """An empty place of the backend under test."""
    url = backend_case.place(services)
    made = Place(url, backend_case, backend_url=url)
    yield made
    made.close()


# Of a case that is one adapter again: the rest does not depend on the server, or on how it is reached.
AGAIN = {"test_features", "test_restart", "test_settle", "test_queues", "test_backends"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would only be the same once more."""

    def is_more_of_the_same(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        return any(isinstance(p, Case) and p.again for p in parameters.values()) and item.path.stem not in AGAIN

    same = {item for item in items if is_more_of_the_same(item)}
    config.hook.pytest_deselected(items=list(same))
    items[:] = [item for item in items if item not in same]
