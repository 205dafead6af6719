"""What things are called on a RabbitMQ server, and which delays share a queue. Nothing here talks to one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qnb.errors import ConfigurationError, Unsupported

LONGEST_NAME = 255  # bytes, of AMQP
# x-expires of a queue of delayed messages goes beyond the delay by this: a publisher may rely on it for half of it.
GRACE_SECONDS = 600.0
LONGEST_DELAY = 45 * 86400.0  # the server counts milliseconds in 32 bits, and the grace has to fit in too
_STEPS = ((1.0, 0.01), (10.0, 0.05), (100.0, 0.5), (1000.0, 5.0), (10_000.0, 60.0), (math.inf, 600.0))
_AWKWARD = re.compile(r"[\x00-\x1f\x7f%]")


def quote(name: str, more: str = "") -> str:
    """The name with control characters, % and `more` percent-encoded."""
    quoted = _AWKWARD.sub(lambda found: f"%{ord(found[0]):02X}", name)
    for character in more:
        quoted = quoted.replace(character, f"%{ord(character):02X}")
    return quoted


def delay_ms(seconds: float) -> int:
    """The delay in steps that grow with it, so that a queue needs few helpers; rounded up: never too early."""
    if seconds > LONGEST_DELAY:
        raise Unsupported(f"a delay of {seconds:,.0f} s: RabbitMQ takes {LONGEST_DELAY:,.0f} s (45 days) at most")
    step = next(step for limit, step in _STEPS if seconds <= limit)
    return round(math.ceil(round(seconds / step, 6)) * step * 1000)


@dataclass(frozen=True, slots=True)
class Names:
    """Names under one prefix."""

    prefix: str

    def _name(self, kind: str, name: str = "") -> str:
        full = f"{quote(self.prefix, '.')}.{kind}" + (f".{quote(name)}" if name else "")
        if len(full.encode()) > LONGEST_NAME:
            raise ConfigurationError(
                f"the name {name[:40]!r}… is too long for RabbitMQ: with the prefix {self.prefix!r} it may have "
                f"{LONGEST_NAME} bytes"
            )
        return full

    def queue(self, name: str) -> str:
        """The queue itself."""
        return self._name("queue", name)

    def urgent(self, name: str) -> str:
        """Its companion, for messages with a priority."""
        return self._name("priority", name)

    def dead(self, name: str) -> str:
        """Its rejected messages."""
        return self._name("dead", name)

    def delayed(self, name: str, ms: int, urgent: bool) -> str:
        """Where messages wait for so long before they come to the queue, or to its companion."""
        return self._name(f"{'late-priority' if urgent else 'late'}-{ms}", name)

    def transfer(self, name: str, consumer: str) -> str:
        """Where a consumer keeps what it has been working on for long; see rabbitmq_consumer."""
        return self._name(f"held-{consumer}", name)

    def mailbox(self, peer: str, unique: str) -> str:
        """The mailbox of a peer; each time it joins, another."""
        return self._name(f"inbox-{unique}", peer)

    @property
    def directory(self) -> str:
        """The queue that has a message for each queue there is."""
        return self._name("directory")

    @property
    def presence(self) -> str:
        """The queue of the last beats of all peers."""
        return self._name("presence")

    @property
    def bus(self) -> str:
        """The exchange of notes."""
        return self._name("bus")
