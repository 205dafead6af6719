"""A broker on the shared private Redis, under a prefix of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.link import Command, Link
from tests.services import Services, with_options


@pytest.fixture
def url(services: Services) -> str:
    return with_options(services.shared("redis").url, prefix=services.word())


@pytest.fixture
def broker(url: str) -> Iterator[RedisBroker]:
    made = RedisBroker(url)
    yield made
    made.close()


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands went out each time something was sent."""
    found: list[int] = []
    original = Link.send

    def counted(link: Link, commands: Sequence[Command]) -> None:
        found.append(len(commands))
        original(link, commands)

    monkeypatch.setattr(Link, "send", counted)
    return found
