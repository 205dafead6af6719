"""What only a RabbitMQ can do to its clients."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from qnb.brokers.base import QueueSpec
from qnb.brokers.rabbitmq.broker import RabbitBroker
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError
from qnb.message import Envelope
from tests.servers.base import free_port
from tests.servers.rabbitmq import RabbitServer
from tests.services import Services, with_options

TIMEOUT = 2.0


class Impatient(RabbitServer):
    """Closes the channel of who holds a message for longer than TIMEOUT."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, consumer_timeout=round(TIMEOUT * 1000))


@pytest.fixture
def url(services: Services) -> str:
    return with_options(services.common(RabbitServer).url, prefix=services.word())


@pytest.fixture
def impatient(services: Services) -> str:
    return with_options(services.common(Impatient).url, prefix=services.word(), lease=1.0, young=0)


@pytest.mark.slow
@pytest.mark.parametrize("priority", [0, 5])
def test_a_task_may_take_longer_than_the_consumer_timeout(impatient: str, priority: int) -> None:
    with closing(RabbitBroker(with_options(impatient, consumer_timeout=TIMEOUT))) as broker:
        broker.publish_many([Envelope("q", b"long", priority=priority)])
        worker, other = broker.consume(["q"], prefetch=1), broker.consume(["q"], prefetch=1)
        held = worker.receive_many(1, 5.0)
        deadline = time.monotonic() + 4 * TIMEOUT
        while time.monotonic() < deadline:
            worker.extend_many(held, 1.0)
            assert other.receive_many(1, 0.2) == []
        worker.ack_many(held)
        assert other.receive_many(1, 1.0) == []
        assert broker.depth("q") == 0


@pytest.mark.slow
def test_who_dies_over_a_long_task_gives_it_back_counted(impatient: str) -> None:
    with closing(RabbitBroker(with_options(impatient, consumer_timeout=TIMEOUT))) as broker:
        dying = RabbitBroker(with_options(impatient, consumer_timeout=TIMEOUT))
        broker.publish_many([Envelope("q", b"long")])
        worker = dying.consume(["q"], prefetch=1)
        held = worker.receive_many(1, 5.0)
        deadline = time.monotonic() + 1.5 * TIMEOUT
        while time.monotonic() < deadline:
            worker.extend_many(held, 1.0)
            time.sleep(0.2)
        dying._link.close()
        [again] = broker.consume(["q"], prefetch=1).receive_many(1, 20.0)
        assert (again.body, again.deliveries) == (b"long", 2)


@pytest.mark.slow
def test_what_a_new_queue_was_given_survives_kill_9(services: Services) -> None:
    server, url = services.killable(RabbitServer)
    with closing(RabbitBroker(url)) as broker:
        broker.publish_many([Envelope("q", b"%d" % number) for number in range(5)])
        server.kill()
        server.start()
        assert [one.body for one in broker.consume(["q"], prefetch=9).receive_many(9, 10.0)] == [
            b"%d" % number for number in range(5)
        ]


def test_a_queue_that_somebody_else_declared_is_used_as_it_is(url: str) -> None:
    with closing(RabbitBroker(with_options(url, queue_type="classic"))) as first:
        first.declare(QueueSpec("q"))
        with closing(RabbitBroker(with_options(url, young=0))) as second:
            second.publish_many([Envelope("q", b"x")])
        assert [one.body for one in first.consume(["q"], prefetch=9).receive_many(9, 5.0)] == [b"x"]


def test_a_queue_that_was_deleted_on_the_server_is_made_again(url: str, services: Services) -> None:
    with closing(RabbitBroker(with_options(url, young=0))) as broker:
        broker.publish_many([Envelope("q", b"lost with its queue")])
        services.common(RabbitServer).control("delete_queue", broker._admin.names.queue("q"))
        broker.publish_many([Envelope("q", b"x")])
        assert [one.body for one in broker.consume(["q"], prefetch=9).receive_many(9, 5.0)] == [b"x"]


def test_wrong_password(services: Services) -> None:
    url = services.common(RabbitServer).url.replace(":guest@", ":hidden@")
    with pytest.raises(AccessDenied, match="refuses user 'guest'") as caught:
        RabbitBroker(url)
    assert "hidden" not in str(caught.value)


def test_unknown_virtual_host(services: Services) -> None:
    with pytest.raises(ConfigurationError, match="add_vhost nowhere"):
        RabbitBroker(f"{services.common(RabbitServer).url}/nowhere")


def test_nobody_there() -> None:
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
        RabbitBroker(f"amqp://127.0.0.1:{port}")
    assert time.monotonic() - begun < 5


def test_the_next_host_is_tried(services: Services) -> None:
    url = services.common(RabbitServer).url.replace("@", f"@127.0.0.1:{free_port()},")
    RabbitBroker(url).close()
