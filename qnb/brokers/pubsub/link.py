"""Calls to Pub/Sub: with a deadline, tried again while the server is away, errors in qnb's words."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from qnb.brokers.pubsub import types as types
from qnb.brokers.pubsub.target import LOG_IN, Target, connect
from qnb.brokers.pubsub.types import grpc
from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigurationError, PayloadTooLarge

CALL_SECONDS = 20.0
CONNECT_SECONDS = 4.5
# How long the absence of the server is ridden out.
PATIENCE = 30.0

_Code = grpc.StatusCode
# What may go away by itself.
PASSING = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.INTERNAL, _Code.RESOURCE_EXHAUSTED}


class Gone(BrokerError):
    """The topic or subscription is not there."""


class Refused(BrokerError):
    """The server does not take the request as it is."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the API. `key` is the field of the request that says what it is about."""

    path: str
    reply: Any
    key: str
    right: str


def _publisher(name: str, reply: Any, key: str, right: str) -> Method:
    return Method(f"/google.pubsub.v1.Publisher/{name}", reply, key, right)


def _subscriber(name: str, reply: Any, key: str, right: str) -> Method:
    return Method(f"/google.pubsub.v1.Subscriber/{name}", reply, key, right)


CREATE_TOPIC = _publisher("CreateTopic", types.Topic, "name", "pubsub.topics.create")
GET_TOPIC = _publisher("GetTopic", types.Topic, "topic", "pubsub.topics.get")
UPDATE_TOPIC = _publisher("UpdateTopic", types.Topic, "topic.name", "pubsub.topics.update")
LIST_TOPICS = _publisher("ListTopics", types.ListTopicsResponse, "project", "pubsub.topics.list")
DELETE_TOPIC = _publisher("DeleteTopic", types.Empty, "topic", "pubsub.topics.delete")
PUBLISH = _publisher("Publish", types.PublishResponse, "topic", "pubsub.topics.publish")
CREATE_SUBSCRIPTION = _subscriber(
    "CreateSubscription", types.Subscription, "name", "pubsub.subscriptions.create and pubsub.topics.attachSubscription"
)
GET_SUBSCRIPTION = _subscriber("GetSubscription", types.Subscription, "subscription", "pubsub.subscriptions.get")
UPDATE_SUBSCRIPTION = _subscriber(
    "UpdateSubscription", types.Subscription, "subscription.name", "pubsub.subscriptions.update"
)
DELETE_SUBSCRIPTION = _subscriber("DeleteSubscription", types.Empty, "subscription", "pubsub.subscriptions.delete")
PULL = _subscriber("Pull", types.PullResponse, "subscription", "pubsub.subscriptions.consume")
ACKNOWLEDGE = _subscriber("Acknowledge", types.Empty, "subscription", "pubsub.subscriptions.consume")
MODIFY = _subscriber("ModifyAckDeadline", types.Empty, "subscription", "pubsub.subscriptions.consume")
SEEK = _subscriber("Seek", types.SeekResponse, "subscription", "pubsub.subscriptions.consume")


def about(method: Method, request: Any) -> str:
    """What the request is about: the full name of a topic or subscription."""
    for part in method.key.split("."):
        request = getattr(request, part)
    return str(request)


class Link:
    """The connection of a broker. Safe from any thread."""

    def __init__(self, target: Target, patience: float) -> None:
        self.target, self.patience = target, patience
        self._channel, self.project = connect(target)
        self._stubs: dict[Method, Any] = {}
        self._closed = threading.Event()

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        """The full name of a subscription."""
        return f"projects/{self.project}/subscriptions/{name}"

    def _stub(self, method: Method) -> Any:
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = self._channel.unary_unary(
                method.path,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=method.reply.FromString,
            )
        return stub

    @staticmethod
    def _routing(method: Method, request: Any) -> tuple[tuple[str, str]]:
        return (("x-goog-request-params", f"{method.key}={quote(about(method, request), safe='')}"),)

    def start(self, method: Method, request: Any, seconds: float) -> Any:
        """The call as a future of grpc; one try."""
        if self._closed.is_set():
            raise self._over()
        future = self._stub(method).future(request, timeout=seconds, metadata=self._routing(method, request))
        # A future that nobody holds is cancelled; one with a callback is held until it is done.
        future.add_done_callback(_held)
        return future

    def call(
        self, method: Method, request: Any, *, patience: float | None = None, seconds: float = CALL_SECONDS
    ) -> Any:
        """The reply. Tried again for `patience` seconds while the server is away."""
        until = time.monotonic() + (self.patience if patience is None else patience)
        pause = 0.05
        while True:
            if self._closed.is_set():
                raise self._over()
            try:
                return self._stub(method)(request, timeout=seconds, metadata=self._routing(method, request))
            except grpc.RpcError as error:
                if not _passing(error) or time.monotonic() + pause > until:
                    raise self.translate(error, method, request) from error
            except ValueError as error:  # the channel was closed in this moment
                raise self._over() from error
            self._closed.wait(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, 2.0)

    def create(self, method: Method, request: Any) -> bool:
        """Whether it was made; False when it was there."""
        try:
            self.call(method, request)
        except BrokerError as error:
            if getattr(error.__cause__, "code", lambda: None)() is _Code.ALREADY_EXISTS:
                return False
            raise
        return True

    def drop(self, method: Method, request: Any) -> None:
        """Remove what the request names, where it is there."""
        with suppress(Gone):
            self.call(method, request)

    def topics(self) -> Iterator[Any]:
        """All topics of the project."""
        token = ""
        while True:
            request = types.ListTopicsRequest(project=f"projects/{self.project}", page_size=1000, page_token=token)
            reply = self.call(LIST_TOPICS, request)
            yield from reply.topics
            token = reply.next_page_token
            if not token:
                return

    def pull(self, request: Any, seconds: float) -> Sequence[Any]:
        """One pull that waits for so long at most; nothing when nothing came. One try."""
        try:
            received: Sequence[Any] = self._stub(PULL)(
                request, timeout=seconds, metadata=self._routing(PULL, request)
            ).received_messages
        except grpc.RpcError as error:
            if error.code() is _Code.DEADLINE_EXCEEDED and not self._closed.is_set():
                return ()
            raise self.translate(error, PULL, request) from error
        except ValueError as error:
            raise self._over() from error
        return received

    def _over(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.target.told}: this broker is closed: open a new one")

    def translate(self, error: Any, method: Method, request: Any) -> Exception:
        """A grpc error in qnb's words."""
        code, details = error.code(), error.details() or ""
        what, told = about(method, request), self.target.told
        if code is _Code.NOT_FOUND:
            return Gone(f"{told}: {what} is not there: {details}")
        if _too_large(error):
            return PayloadTooLarge(f"{told} does not take so large a message: {details}")
        if code is _Code.PERMISSION_DENIED:
            return AccessDenied(
                f"{told} refuses {what}: the credentials lack the permission {method.right} ({details}). Grant it, or "
                "have topics and subscriptions made beforehand and put ?create=false into the URL"
            )
        if code is _Code.UNAUTHENTICATED or _no_token(error):
            return AccessDenied(f"{told} does not accept the credentials: {LOG_IN}")
        if code is _Code.RESOURCE_EXHAUSTED:
            return BrokerUnavailable(f"{told}: over a quota of the project, see those of the Pub/Sub API: {details}")
        if code in PASSING or code is _Code.CANCELLED:
            return BrokerUnavailable(f"{told} cannot be reached ({_short(details)}): {self._check()}")
        if code in (_Code.INVALID_ARGUMENT, _Code.FAILED_PRECONDITION):
            return Refused(f"{told} refuses {what}: {details}")
        return BrokerError(f"{told}: {what}: {code.name if code else error}: {details}")

    def _check(self) -> str:
        if self.target.emulated:
            return "does it run there? `gcloud beta emulators pubsub start` starts one"
        return "check the network, the proxy and the endpoint in the URL"

    def try_out(self) -> None:
        """Reach the server: any answer about a topic that nobody has will do."""
        request = types.GetTopicRequest(topic=self.topic("qnb-is-it-there"))
        try:
            self.call(GET_TOPIC, request, patience=0.0, seconds=CONNECT_SECONDS)
        except Gone as error:
            if "project not found" in str(error).lower():
                raise ConfigurationError(
                    f"{self.target.told} has no project {self.project!r}, or the credentials do not show it: check "
                    "the name in the URL with `gcloud projects list`"
                ) from error
        except AccessDenied as error:
            cause: Any = error.__cause__
            # Without the right to look, publishing or consuming may still be allowed.
            if cause.code() is not _Code.PERMISSION_DENIED or "has not been used" in (cause.details() or ""):
                raise

    def close(self) -> None:
        """No more calls."""
        self._closed.set()
        self._channel.close()


def _held(future: Any) -> None:
    """Nothing is to be done."""


def _passing(error: Any) -> bool:
    return error.code() in PASSING and not _too_large(error) and not _no_token(error)


def _no_token(error: Any) -> bool:
    """The credentials were there, and their issuer gives no token for them: expired, or revoked."""
    details = error.details() or ""
    return "metadata from plugin failed" in details and "TransportError" not in details


def _too_large(error: Any) -> bool:
    details = (error.details() or "").lower()
    return "too large" in details or "larger than max" in details or "exceeds maximum" in details


def _short(details: str) -> str:
    """grpc's tale of all addresses it tried, cut to what a person can use."""
    return details.split("; ")[-1][:200]
