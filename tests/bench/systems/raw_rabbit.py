"""RabbitMQ through pika's SelectConnection: 1,000 unconfirmed publishes at a time, outcomes and acks once a read."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pika

from tests.bench.systems.raw import RawLoop, message, number_of, place_of

WINDOW = 1000


def connect(url: str, then: Callable[[Any], None]) -> pika.SelectConnection:
    """A connection whose channel is given to `then`; it is run by its ioloop."""
    server = place_of(url).server
    target = pika.ConnectionParameters(server.hostname, server.port, heartbeat=0)
    return pika.SelectConnection(target, on_open_callback=lambda connection: connection.channel(on_open_callback=then))


class RawRabbit(RawLoop):
    """Tasks in a durable quorum queue, as qnb's are; outcomes in an exclusive one."""

    label = "raw pika (SelectConnection), a persistent confirmed message a task, an outcome message each"
    broker = "amqp"

    def prepare(self) -> None:
        server = self.place.server
        with pika.BlockingConnection(pika.ConnectionParameters(server.hostname, server.port)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.place.word, durable=True, arguments={"x-queue-type": "quorum"})

    def connect(self) -> None:
        self.waiting: deque[int] = deque()
        self.sent = self.confirmed = self.wanted = 0
        self.found: list[int] = []
        self.connection = connect(self.place.broker, self._opened)
        self.connection.ioloop.start()

    def _opened(self, channel: Any) -> None:
        def declared(frame: Any) -> None:
            self.properties = pika.BasicProperties(delivery_mode=2, reply_to=frame.method.queue)
            channel.confirm_delivery(self._confirm, callback=lambda _: None)
            channel.basic_consume(frame.method.queue, self._outcome, auto_ack=True, callback=lambda _: self._stop())

        self.channel = channel
        channel.queue_declare("", exclusive=True, callback=declared)

    def _stop(self) -> None:
        self.connection.ioloop.stop()

    def _confirm(self, frame: Any) -> None:
        assert isinstance(frame.method, pika.spec.Basic.Ack)
        # Confirms may come out of order; the window only needs to know about how many there are.
        self.confirmed = max(self.confirmed, frame.method.delivery_tag)
        self._pump()
        self._look()

    def _outcome(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.found.append(number_of(body))
        self._look()

    def _look(self) -> None:
        if self.wanted and len(self.found) >= self.wanted and not self.waiting and self.sent == self.confirmed:
            self._stop()

    def _pump(self) -> None:
        publish, key = self.channel.basic_publish, self.place.word
        while self.waiting and self.sent - self.confirmed < WINDOW:
            publish("", key, message(self.waiting.popleft()), self.properties)
            self.sent += 1

    def publish(self, numbers: Sequence[int]) -> None:
        self.waiting.extend(numbers)
        self._pump()

    def collect(self, count: int) -> list[int]:
        self.wanted = count
        self.connection.ioloop.start()
        self.wanted, found, self.found = 0, self.found, []
        return found


def serve(url: str) -> None:
    """The worker's half."""
    queue, taken = place_of(url).word, []

    def flush() -> None:
        for _, properties, body in taken:
            channel.basic_publish("", properties.reply_to, body)
        channel.basic_ack(taken[-1][0].delivery_tag, multiple=True)
        taken.clear()

    def take(_: Any, method: Any, properties: Any, body: bytes) -> None:
        if not taken:
            connection.ioloop.call_later(0, flush)  # once what has been read is through
        taken.append((method, properties, body))

    def opened(found: Any) -> None:
        nonlocal channel
        channel = found
        channel.basic_qos(prefetch_count=WINDOW, callback=lambda _: channel.basic_consume(queue, take))

    channel: Any = None
    connection = connect(url, opened)
    connection.ioloop.start()


if __name__ == "__main__":
    serve(sys.argv[1])
