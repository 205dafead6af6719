"""Kafka servers for the tests of the adapter's own matters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qnb.brokers.kafka.broker import KafkaBroker
from tests.servers.kafka import KafkaServer
from tests.services import Services, with_options


@pytest.fixture
def url(services: Services) -> str:
    """An empty place of the shared server."""
    return with_options(services.common(KafkaServer).url, prefix=services.word())


@pytest.fixture
def broker(url: str) -> Iterator[KafkaBroker]:
    made = KafkaBroker(url)
    yield made
    made.close()
