"""What is refused before anything of it is written, by brokers that keep their queues themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qnb.errors import PayloadTooLarge, Unsupported
from qnb.features import Features
from qnb.message import Envelope
from qnb.settings import Address


def with_limit(features: Features, address: Address) -> Features:
    """The features with the message limit of the URL's `max_message` (bytes), where it is lower."""
    own = features.limits.message_bytes
    asked = int(address.number("max_message", 0))
    if asked <= 0 or (own is not None and asked >= own):
        return features
    return replace(features, limits=replace(features.limits, message_bytes=asked))


def check_envelopes(envelopes: Sequence[Envelope], features: Features, url: str) -> None:
    """Unsupported for a priority beyond the levels; PayloadTooLarge over the limit."""
    limit, levels = features.limits.message_bytes, features.limits.priority_levels
    for envelope in envelopes:
        if not 0 <= envelope.priority < levels:
            raise Unsupported(
                f"priority {envelope.priority}: {url} has priority 0 to {levels - 1}, and {levels - 1} comes first"
            )
        if limit is not None and len(envelope.body) > limit:
            raise PayloadTooLarge(
                f"message {envelope.id or '?'} for queue {envelope.queue} has {len(envelope.body):,} bytes; "
                f"{url} takes {limit:,} at most: put the data in a file and send its name"
            )
