"""What the tests of the Redis broker share."""

from __future__ import annotations

from qnb.brokers.redis.broker import RedisBroker
from qnb.brokers.redis.consumer import RedisConsumer


def keys(broker: RedisBroker) -> set[str]:
    """Every key of this broker's prefix."""
    found = broker._client.one("KEYS", broker._base.replace("{", "\\{") + "*")
    return {key.decode().removeprefix(broker._base) for key in found}


def consume(broker: RedisBroker, *queues: str, prefetch: int = 100) -> RedisConsumer:
    consumer = broker.consume(queues or ("q",), prefetch=prefetch)
    assert isinstance(consumer, RedisConsumer)
    return consumer
