"""What the consumers of one broker object share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qnb.brokers.kafka.bus import KafkaBus
from qnb.brokers.kafka.publisher import Publisher
from qnb.brokers.kafka.topics import Topics


@dataclass(frozen=True, slots=True)
class Context:
    """What consumers of one broker object share."""

    settings: dict[str, Any]
    topics: Topics
    publisher: Publisher
    bus: KafkaBus
    url: str
    bounds: Callable[[], tuple[float, float]]

    @property
    def key(self) -> tuple[str, str]:
        """The same for all broker objects of one place."""
        return self.settings["bootstrap.servers"], self.topics.names.base
