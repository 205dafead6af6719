"""How a task is to be run, as the user says it."""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from qnb.errors import ConfigurationError
from qnb.message import Options


def _whole(name: str, value: Any) -> int:
    """A plain int of any whole number, numpy's too; on the wire there are no others."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigurationError(f"{name}={value!r}: give a whole number")
    return operator.index(value)


def _seconds(name: str, value: Any) -> float | None:
    """A plain float of any number."""
    if value is None and name not in ("backoff", "delay"):
        return None
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ConfigurationError(f"{name}={value!r}: give a number of seconds")
    return float(value)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a task; times in seconds.

    retries: how often a failed call is tried again; backoff: the first pause, doubled each time, with jitter.
    timeout: the call's lane is killed then; soft_timeout: SoftTimeout is raised inside the call then.
    priority: 0 … 9, 9 first. delay: not before so many seconds from now; eta: not before this datetime (without a zone:
    local time). expires: not later than so many seconds from now.
    queue: where to, when not the session's queue. key: a second submit with the same key, by any session, gets the
    first one's outcome. max_deliveries: how many lanes a call may take down with it. keep: the result stays in the
    backend, and a handle comes in its place.
    """

    retries: int = 0
    backoff: float = 1.0
    timeout: float | None = None
    soft_timeout: float | None = None
    priority: int = 0
    delay: float = 0.0
    expires: float | None = None
    eta: datetime | None = None
    queue: str | None = None
    key: str | None = None
    name: str | None = None
    max_deliveries: int = 3
    keep: bool = False

    def __post_init__(self) -> None:
        for name in ("retries", "priority", "max_deliveries"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("backoff", "delay", "timeout", "soft_timeout", "expires"):
            object.__setattr__(self, name, _seconds(name, getattr(self, name)))
        for name in ("timeout", "soft_timeout", "expires"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name}={value!r}: give seconds above 0, or None for no limit")
        if not 0 <= self.priority <= 9:
            raise ConfigurationError(f"priority={self.priority!r}: give 0 … 9; 9 goes first")
        if self.retries < 0 or self.backoff < 0 or self.delay < 0:
            raise ConfigurationError("retries, backoff and delay cannot be negative")
        self._check_eta()
        key: Any = self.key
        if key is not None and not (isinstance(key, str) and key):
            raise ConfigurationError(f"key={key!r}: give a text that names the call")
        if self.max_deliveries < 1:
            raise ConfigurationError("max_deliveries is at least 1")

    def _check_eta(self) -> None:
        eta: Any = self.eta
        if eta is None:
            return
        if not isinstance(eta, datetime):
            raise ConfigurationError(f"eta={eta!r}: give a datetime; delay= takes seconds from now")
        if self.delay:
            raise ConfigurationError("eta and delay both say when to start: give one of them")
        try:
            object.__setattr__(self, "eta", datetime.fromtimestamp(eta.timestamp(), UTC))
        except (ValueError, OverflowError, OSError) as error:
            raise ConfigurationError(f"eta={eta!r}: {error}") from None

    @property
    def pause(self) -> float:
        """Seconds from now until it may start."""
        return self.delay if self.eta is None else max(0.0, self.eta.timestamp() - time.time())

    def change(self, **changes: Any) -> TaskOptions:
        """The same with some changed; an unknown name is told with those there are."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigurationError(f"no option {name!r}; there are {', '.join(known)}")
        return replace(self, **changes)

    def on_wire(self) -> Options:
        """As they travel: what expires gets a date."""
        expires = None if self.expires is None else time.time() + self.expires
        return Options(
            self.retries,
            self.backoff,
            self.timeout,
            self.soft_timeout,
            self.priority,
            expires,
            self.max_deliveries,
            self.keep,
        )
