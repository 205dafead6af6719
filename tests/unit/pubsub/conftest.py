"""A double of Pub/Sub in this process, and brokers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from qnb.brokers.pubsub.broker import PubsubBroker
from tests.servers.pubsub_double import Double

Open = Callable[..., PubsubBroker]


@pytest.fixture
def double() -> Iterator[Double]:
    server = Double()
    yield server
    server.stop()


@pytest.fixture
def broker(double: Double) -> Iterator[Open]:
    """Opens brokers with these options; closes them in the end."""
    with ExitStack() as opened:

        def make(**options: Any) -> PubsubBroker:
            query = "&".join(f"{name}={value}" for name, value in options.items())
            made = PubsubBroker(f"pubsub://test@127.0.0.1:{double.port}?{query}")
            opened.callback(made.close)
            return made

        yield make
