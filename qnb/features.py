"""What a broker or backend can do, told the same way to people, docs and the conformance suite."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields


class Support(enum.Enum):
    """How a feature comes about."""

    NATIVE = "native"  # the server does it
    BUILT = "built"  # qnb does it with what the server has
    NONE = "none"  # asking for it raises Unsupported


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a broker; None where there is none. Sizes in bytes, times in seconds.

    `lease_min_seconds` and `lease_seconds` bound a lease as the server keeps it. `ordering` says among which messages
    of one priority the order of publishing holds: of a "queue", of a "partition" of it, or "none".
    """

    message_bytes: int | None = None
    batch_messages: int | None = None
    delay_seconds: float | None = None
    lease_min_seconds: float = 0.0
    lease_seconds: float | None = None
    priority_levels: int = 1
    ordering: str = "queue"


@dataclass(frozen=True, slots=True)
class Features:
    """A broker's features and limits. Every name but `limits` is one row of the feature table."""

    confirmed_publish: Support
    lease_extension: Support
    redelivery: Support
    delay: Support
    priority: Support
    dead_letter: Support
    monitoring: Support
    remote_control: Support
    purge: Support
    queue_depth: Support
    survives_restart: Support
    limits: Limits = Limits()

    def table(self) -> dict[str, Support]:
        """Feature name → Support, in the order in which they are shown."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "limits"}
