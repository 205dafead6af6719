"""Numbers as people read them. widgets/src/lib/words.ts says the same; widgets/tests/words.json holds both to it."""

from __future__ import annotations

import math


def count(value: float) -> str:
    return f"{math.floor(value + 0.5):,}"


def percent(part: int, whole: int) -> str:
    """Whole percent, rounded down: 100 % means all of them."""
    return f"{100 * part // whole if whole else 100} %"


def size(number: float) -> str:
    """Bytes, in three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.3g} {unit}"


def duration(seconds: float) -> str:
    milliseconds = math.floor(seconds * 1000 + 0.5)
    if milliseconds < 1:
        return "<1 ms"
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    if milliseconds < 9950:
        return f"{milliseconds / 1000:.1f} s"
    whole = math.floor(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def rate(per_second: float) -> str:
    """Calls per second, or per minute or hour where that reads better; nothing for none."""
    if not per_second > 0:
        return ""
    if per_second >= 9.95:
        return f"{count(per_second)}/s"
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    if per_second * 60 >= 1:
        return f"{count(per_second * 60)}/min"
    return f"{max(1, math.floor(per_second * 3600 + 0.5))}/h"


def left(seconds: float | None) -> str:
    """Time left, as rough as it is."""
    if seconds is None:
        return ""
    whole = max(1, math.ceil(seconds))
    if whole < 60:
        return f"about {whole} s left"
    minutes = math.ceil(whole / 60)
    return f"about {f'{minutes} min' if minutes < 60 else duration(minutes * 60)} left"
