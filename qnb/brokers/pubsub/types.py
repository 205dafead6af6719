"""The messages of Pub/Sub's API as plain protobuf: the client's own wrappers cost ten times as much to make.

Everything of the client library comes through here, so that grpc is calmed before its first import.
"""

from __future__ import annotations

from typing import Any

from qnb.settings import calm_grpc

calm_grpc()

import grpc  # type: ignore[import-untyped, unused-ignore]  # noqa: E402
from google.protobuf.duration_pb2 import Duration  # noqa: E402
from google.protobuf.empty_pb2 import Empty  # noqa: E402
from google.protobuf.field_mask_pb2 import FieldMask  # noqa: E402
from google.protobuf.timestamp_pb2 import Timestamp  # noqa: E402
from google.pubsub_v1.types import pubsub as _wrapped  # noqa: E402

__all__ = ["Duration", "Empty", "FieldMask", "Timestamp", "grpc"]


def _plain(name: str) -> Any:
    wrapped: Any = getattr(_wrapped, name)
    return type(wrapped.pb(wrapped()))


AcknowledgeRequest = _plain("AcknowledgeRequest")
DeadLetterPolicy = _plain("DeadLetterPolicy")
DeleteSubscriptionRequest = _plain("DeleteSubscriptionRequest")
DeleteTopicRequest = _plain("DeleteTopicRequest")
ExpirationPolicy = _plain("ExpirationPolicy")
GetSubscriptionRequest = _plain("GetSubscriptionRequest")
GetTopicRequest = _plain("GetTopicRequest")
ListTopicsRequest = _plain("ListTopicsRequest")
ListTopicsResponse = _plain("ListTopicsResponse")
ModifyAckDeadlineRequest = _plain("ModifyAckDeadlineRequest")
PublishRequest = _plain("PublishRequest")
PublishResponse = _plain("PublishResponse")
PubsubMessage = _plain("PubsubMessage")
PullRequest = _plain("PullRequest")
PullResponse = _plain("PullResponse")
SeekRequest = _plain("SeekRequest")
SeekResponse = _plain("SeekResponse")
Subscription = _plain("Subscription")
Topic = _plain("Topic")
UpdateSubscriptionRequest = _plain("UpdateSubscriptionRequest")
UpdateTopicRequest = _plain("UpdateTopicRequest")
