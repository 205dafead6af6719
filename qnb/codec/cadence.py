"""When a schedule is due: an interval ("10m", "1h30m") or a cron expression in a time zone."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

from qnb.errors import ConfigurationError

SHORTEST = 1.0  # seconds
COUNTED = 1000  # ticks that were missed; more are not counted
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")
_HINT = "give an interval like '10m', '1h30m' or '30s', or a cron expression of five fields like '*/5 * * * *'"


class Cadence:
    """The ticks of a schedule that began at `start` (Unix time). ConfigurationError when `every` says nothing."""

    def __init__(self, every: str, zone: str, start: float) -> None:
        self.every = every
        self.start = start
        self._seconds = _interval(every)
        self._zone = zone_of(zone)
        if self._seconds is None:
            if len(every.split()) not in (5, 6):
                raise ConfigurationError(f"every={every!r}: {_HINT}")
            self.after(start)
        elif self._seconds < SHORTEST:
            raise ConfigurationError(f"every={every!r}: once a second is the most; {_HINT}")

    def after(self, when: float) -> float:
        """The first tick later than this."""
        if self._seconds is not None:
            return self.start + (self._before(when, self._seconds) + 1) * self._seconds
        return next(self._ticks(when))

    def due(self, last: float, now: float) -> tuple[float, int] | None:
        """The latest tick after `last` that is not later than now, and how many before it were missed; None when there
        is none."""
        first = self.after(last)
        if first > now:
            return None
        if self._seconds is not None:
            latest = self.start + self._before(now, self._seconds) * self._seconds
            return max(first, latest), max(0, round((latest - first) / self._seconds))
        missed = 0
        for tick in self._ticks(first):
            if tick > now:
                return first, missed
            if missed == COUNTED:
                break
            first, missed = tick, missed + 1
        return next(self._ticks(now, backward=True)), missed

    def _before(self, when: float, seconds: float) -> int:
        """How many intervals have passed; a millisecond is for what Unix times of today lose as floats."""
        return math.floor((when - self.start + 0.001) / seconds)

    def _ticks(self, when: float, backward: bool = False) -> Iterator[float]:
        from cronsim import CronSim, CronSimError

        begin = datetime.fromtimestamp(when, self._zone)
        try:
            for tick in CronSim(self.every, begin, reverse=backward):
                yield tick.timestamp()
        except CronSimError as error:
            raise ConfigurationError(f"every={self.every!r} is no cron expression ({error}): {_HINT}") from error
        raise ConfigurationError(f"every={self.every!r} names a time that never comes: {_HINT}")


def as_text(every: Any) -> str:
    """What the user has given, as it is kept: text, seconds or a timedelta."""
    if isinstance(every, timedelta):
        every = every.total_seconds()
    if isinstance(every, (int, float)) and not isinstance(every, bool):
        return f"{every:g}s"
    if not isinstance(every, str) or not every.strip():
        raise ConfigurationError(f"every={every!r}: {_HINT}")
    return " ".join(every.split())


def _interval(text: str) -> float | None:
    """Seconds of "1h30m"; None when it is no interval."""
    compact = text.replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def zone_of(name: str) -> tzinfo:
    """A time zone by its name or offset; ConfigurationError when nobody here knows it."""
    if name == "UTC":
        return UTC
    if match := _OFFSET.fullmatch(name):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return timezone(-offset if match[1] == "-" else offset)
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"tz={name!r}: this machine knows no such time zone: give one like 'Europe/Berlin', or pip install tzdata"
        ) from error


def offset_name(when: float | None = None) -> str:
    """The offset of this machine's clock from UTC, as a zone's name: for machines whose zone has no name."""
    local = datetime.fromtimestamp(time.time() if when is None else when).astimezone()
    minutes = round((local.utcoffset() or timedelta()).total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
