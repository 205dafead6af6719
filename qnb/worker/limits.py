"""What a worker was told about single tasks: how many a second it may start, and how long one may run. No clock."""

from __future__ import annotations

import re

import msgspec

from qnb.errors import ConfigurationError
from qnb.message import Frame

_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*([smh]))?\s*$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def per_second(rate: str | float | None) -> float | None:
    """Calls a second of "10/s", "600/m", "5/h" or a number (a second); None for no limit ("0", "" or None)."""
    if rate is None or rate == "":
        return None
    found = _RATE.match(str(rate))
    if found is None:
        raise ConfigurationError(f"rate limit {rate!r}: give something like '10/s', '600/m' or '5/h'; '0' removes it")
    return float(found[1]) / _SECONDS[found[2] or "s"] or None


def seconds_or_none(name: str, value: object) -> float | None:
    """A time limit as it was asked for; ConfigurationError for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name}={value!r}: give seconds above 0, or None for no limit")
    return float(value)


class _Bucket(msgspec.Struct):
    """Tokens for calls that may start now; a second's worth is kept, and at least one."""

    rate: float
    tokens: float
    at: float

    def fill(self, now: float) -> None:
        self.tokens = min(max(1.0, self.rate), self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now


class Limits:
    """By the name of a function."""

    def __init__(self) -> None:
        self._rates: dict[str, _Bucket] = {}
        self._times: dict[str, tuple[float | None, float | None]] = {}

    def limit_rate(self, name: str, rate: float | None, now: float) -> None:
        """So many calls a second from now on; None: as many as there are."""
        if rate is None:
            self._rates.pop(name, None)
        else:
            self._rates[name] = _Bucket(rate, 1.0, now)

    def limit_time(self, name: str, hard: float | None, soft: float | None) -> None:
        """Seconds that a call may run, in place of what it was submitted with; both None: as submitted."""
        if hard is None and soft is None:
            self._times.pop(name, None)
        else:
            self._times[name] = hard, soft

    @property
    def rated(self) -> bool:
        """Whether any function is limited in its rate."""
        return bool(self._rates)

    def may_start(self, name: str, count: int, now: float) -> int:
        """How many of so many calls may start now; they count as started."""
        bucket = self._rates.get(name)
        if bucket is None:
            return count
        bucket.fill(now)
        allowed = min(count, int(bucket.tokens + 1e-9))
        bucket.tokens -= allowed
        return allowed

    def wait(self, name: str, calls: int) -> float:
        """Seconds until so many more calls could have started."""
        bucket = self._rates.get(name)
        return max(0.0, calls - bucket.tokens) / bucket.rate if bucket is not None else 0.0

    def times(self, frame: Frame) -> tuple[float | None, float | None]:
        """(hard, soft) seconds for the calls of a frame."""
        options = frame.options
        return self._times.get(frame.function.name, (options.timeout, options.soft_timeout))

    def told(self) -> dict[str, dict[str, float | None]]:
        """What was said, for `conf`: rates in calls a second, times in seconds."""
        return {
            "rates": {name: bucket.rate for name, bucket in self._rates.items()},
            "hard": {name: hard for name, (hard, _) in self._times.items()},
            "soft": {name: soft for name, (_, soft) in self._times.items()},
        }
