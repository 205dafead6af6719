"""A double of Pub/Sub, for machines without Google's emulator and for tests of what the emulator never says.

It keeps topics and subscriptions in memory and answers over grpc with the client library's own messages. Deadlines,
delivery attempts, seeking to a time, waiting pulls and their cancellation are as in the service; it knows no ordering
keys or snapshots, and takes nothing on a topic with a schema. `deny` names methods that are refused for want of
permission, `fail` a method and the words with which it is unavailable.

    python pubsub_double.py PORT
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from google.pubsub_v1.types import schema as _schema

from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.types import grpc

Code = grpc.StatusCode
_DETACHED = "_deleted-topic_"
# A pull ends so long before its caller's deadline.
_MARGIN = 1.0
_CALLS = 200


@dataclass(eq=False)
class Message:
    """A message in one subscription. `until` is when its deadline ends, None while it waits."""

    data: Any
    at: float
    attempts: int = 0
    ack_id: str = ""
    until: float | None = None


@dataclass(eq=False)
class Subscription:
    """Messages in the order of publishing."""

    spec: Any
    messages: dict[int, Message] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)


class Double:
    """The server. All of it under one lock."""

    def __init__(self, port: int = 0, deny: tuple[str, ...] = ()) -> None:
        self.deny = deny
        self.fail: tuple[str, str] = ("", "")
        self.calls: list[str] = []
        self._changed = threading.Condition()
        self._topics: dict[str, Any] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._numbers = itertools.count(1)
        self.port = port
        self.start()

    def start(self) -> None:
        """Open, for the first time or again, with what there was before."""
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS),
            options=[("grpc.max_receive_message_length", 11_000_000), ("grpc.max_send_message_length", -1)],
        )
        services = {service for service, _, _ in METHODS}
        self._server.add_generic_rpc_handlers([self._handlers(service) for service in services])
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def wait(self) -> None:
        """Until it is stopped."""
        self._server.wait_for_termination()

    def stop(self) -> None:
        """Close the door: callers are cut off in the middle."""
        self._server.stop(0).wait()
        with self._changed:
            self._changed.notify_all()

    @property
    def names(self) -> list[str]:
        """What is there: the last parts of the names of topics and subscriptions."""
        with self._changed:
            return sorted(name.rpartition("/")[2] for name in [*self._topics, *self._subscriptions])

    def spec(self, name: str) -> Any:
        """A subscription as it was made."""
        return next(each.spec for full, each in self._subscriptions.items() if full.endswith(f"/{name}"))

    def _handlers(self, service: str) -> Any:
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guard(name, getattr(self, name)),
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )
            for of, name, request in METHODS
            if of == service
        }
        return grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", methods)

    def _guard(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            if name in self.deny:
                context.abort(Code.PERMISSION_DENIED, "User not authorized to perform this action.")
            if name == self.fail[0]:
                context.abort(Code.UNAVAILABLE, self.fail[1])
            with self._changed:
                self.calls.append(name)
                return method(request, context)

        return call

    # Topics ----------------------------------------------------------------------------------------------------

    def _topic(self, name: str, context: Any) -> Any:
        if name not in self._topics:
            context.abort(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return self._topics[name]

    def CreateTopic(self, request: Any, context: Any) -> Any:
        if request.name in self._topics:
            context.abort(Code.ALREADY_EXISTS, f"Resource already exists in the project (resource={request.name}).")
        self._topics[request.name] = request
        return request

    def GetTopic(self, request: Any, context: Any) -> Any:
        return self._topic(request.topic, context)

    def UpdateTopic(self, request: Any, context: Any) -> Any:
        topic = self._topic(request.topic.name, context)
        topic.labels.clear()
        topic.labels.update(request.topic.labels)
        return topic

    def ListTopics(self, request: Any, context: Any) -> Any:
        names = sorted(name for name in self._topics if name.startswith(f"{request.project}/"))
        first = int(request.page_token or 0)
        size = request.page_size or 100
        more = str(first + size) if len(names) > first + size else ""
        page = [self._topics[name] for name in names[first : first + size]]
        return types.ListTopicsResponse(topics=page, next_page_token=more)

    def DeleteTopic(self, request: Any, context: Any) -> Any:
        self._topic(request.topic, context)
        del self._topics[request.topic]
        for each in self._subscriptions.values():
            if each.spec.topic == request.topic:
                each.spec.topic = _DETACHED
        return types.Empty()

    def Publish(self, request: Any, context: Any) -> Any:
        if self._topic(request.topic, context).schema_settings.schema:
            context.abort(Code.INVALID_ARGUMENT, "The message does not match the schema of the topic.")
        if request.ByteSize() > 10_000_000 or len(request.messages) > 1000:
            context.abort(Code.INVALID_ARGUMENT, "Request payload size exceeds the limit: the request is too large.")
        now = time.time()
        ids = []
        for message in request.messages:
            number = next(self._numbers)
            message.message_id = str(number)
            message.publish_time.FromNanoseconds(int(now * 1e9))
            ids.append(message.message_id)
            for each in self._subscriptions.values():
                if each.spec.topic == request.topic:
                    each.messages[number] = Message(message, now)
        self._changed.notify_all()
        return types.PublishResponse(message_ids=ids)

    def CreateSchema(self, request: Any, context: Any) -> Any:
        """Nothing matches it."""
        return request.schema

    # Subscriptions ---------------------------------------------------------------------------------------------

    def _subscription(self, name: str, context: Any) -> Subscription:
        if name not in self._subscriptions:
            context.abort(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return self._subscriptions[name]

    def CreateSubscription(self, request: Any, context: Any) -> Any:
        if request.name in self._subscriptions:
            context.abort(Code.ALREADY_EXISTS, f"Resource already exists in the project (resource={request.name}).")
        self._topic(request.topic, context)
        if not 10 <= request.ack_deadline_seconds <= 600:
            context.abort(Code.INVALID_ARGUMENT, "Invalid ack deadline: it must be between 10 and 600 seconds.")
        self._subscriptions[request.name] = Subscription(request)
        return request

    def GetSubscription(self, request: Any, context: Any) -> Any:
        return self._subscription(request.subscription, context).spec

    def UpdateSubscription(self, request: Any, context: Any) -> Any:
        spec = self._subscription(request.subscription.name, context).spec
        spec.ack_deadline_seconds = request.subscription.ack_deadline_seconds
        return spec

    def DeleteSubscription(self, request: Any, context: Any) -> Any:
        self._subscription(request.subscription, context)
        del self._subscriptions[request.subscription]
        self._changed.notify_all()
        return types.Empty()

    def Seek(self, request: Any, context: Any) -> Any:
        found = self._subscription(request.subscription, context)
        until = request.time.ToNanoseconds() / 1e9
        found.messages = {number: each for number, each in found.messages.items() if each.at > until}
        return types.SeekResponse()

    # Deliveries ------------------------------------------------------------------------------------------------

    def Pull(self, request: Any, context: Any) -> Any:
        remaining = context.time_remaining()
        end = time.monotonic() + max(0.05, (60.0 if remaining is None else remaining) - _MARGIN)
        while context.is_active():
            found = self._subscription(request.subscription, context)
            got = list(itertools.islice(self._ready(found), request.max_messages))
            now = time.monotonic()
            if got or request.return_immediately or now >= end:
                return types.PullResponse(received_messages=[self._deliver(found, number) for number in got])
            dues = [each.until for each in found.messages.values() if each.until is not None]
            # Short: that the caller has hung up is seen only by looking.
            self._changed.wait(min([end - now, 0.25, *(max(0.0, due - now) for due in dues)]))
        return types.PullResponse()

    def _ready(self, found: Subscription) -> Iterator[int]:
        now = time.monotonic()
        for number, each in found.messages.items():
            if each.until is None or each.until <= now:
                yield number

    def _deliver(self, found: Subscription, number: int) -> Any:
        each = found.messages[number]
        found.held.pop(each.ack_id, None)
        each.attempts += 1
        each.ack_id = f"{number}-{each.attempts}-" + "x" * 150  # as long as the service's
        each.until = time.monotonic() + found.spec.ack_deadline_seconds
        found.held[each.ack_id] = number
        counted = each.attempts if found.spec.dead_letter_policy.dead_letter_topic else 0
        return RECEIVED(ack_id=each.ack_id, message=each.data, delivery_attempt=counted)

    def Acknowledge(self, request: Any, context: Any) -> Any:
        found = self._subscription(request.subscription, context)
        for ack_id in request.ack_ids:
            found.messages.pop(found.held.pop(ack_id, 0), None)
        return types.Empty()

    def ModifyAckDeadline(self, request: Any, context: Any) -> Any:
        found = self._subscription(request.subscription, context)
        seconds = request.ack_deadline_seconds
        for ack_id in request.ack_ids:
            number = found.held.get(ack_id, 0)
            if number in found.messages:
                found.messages[number].until = time.monotonic() + seconds if seconds else None
        self._changed.notify_all()
        return types.Empty()


RECEIVED = type(types.PullResponse().received_messages.add())
METHODS = (
    ("SchemaService", "CreateSchema", type(_schema.CreateSchemaRequest.pb(_schema.CreateSchemaRequest()))),
    ("Publisher", "CreateTopic", types.Topic),
    ("Publisher", "GetTopic", types.GetTopicRequest),
    ("Publisher", "UpdateTopic", types.UpdateTopicRequest),
    ("Publisher", "ListTopics", types.ListTopicsRequest),
    ("Publisher", "DeleteTopic", types.DeleteTopicRequest),
    ("Publisher", "Publish", types.PublishRequest),
    ("Subscriber", "CreateSubscription", types.Subscription),
    ("Subscriber", "GetSubscription", types.GetSubscriptionRequest),
    ("Subscriber", "UpdateSubscription", types.UpdateSubscriptionRequest),
    ("Subscriber", "DeleteSubscription", types.DeleteSubscriptionRequest),
    ("Subscriber", "Seek", types.SeekRequest),
    ("Subscriber", "Pull", types.PullRequest),
    ("Subscriber", "Acknowledge", types.AcknowledgeRequest),
    ("Subscriber", "ModifyAckDeadline", types.ModifyAckDeadlineRequest),
)

if __name__ == "__main__":
    double = Double(int(sys.argv[1]))
    print("Server started", flush=True)
    double.wait()
