"""When schedules are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb import settings
from qnb.codec.cadence import COUNTED, Cadence, as_text, offset_name, zone_of
from qnb.errors import ConfigurationError

START = datetime(2026, 3, 28, 12, 0, tzinfo=UTC).timestamp()


def at(cadence: Cadence, when: str) -> datetime:
    return datetime.fromtimestamp(cadence.after(datetime.fromisoformat(when).timestamp()), UTC)


@pytest.mark.parametrize(
    "every, seconds",
    [("10m", 600), ("1h30m", 5400), ("30s", 30), ("1.5h", 5400), ("1 h 30 m", 5400), ("2d", 172800), ("1w", 604800)],
)
def test_intervals(every: str, seconds: float) -> None:
    cadence = Cadence(every, "UTC", START)
    assert cadence.after(START) == START + seconds
    assert cadence.after(START + seconds - 0.01) == START + seconds
    assert cadence.after(START + seconds) == START + 2 * seconds
    assert cadence.due(START, START + seconds - 1) is None
    assert cadence.due(START, START + seconds) == (START + seconds, 0)
    assert cadence.due(START, START + 3.5 * seconds) == (START + 3 * seconds, 2), "the latest, once"


@given(
    st.integers(1, 10**6).map(lambda n: n / 10 + 1),
    st.floats(0, 10**6),
    st.floats(0, 10**6),
)
def test_intervals_hang_together(seconds: float, since: float, more: float) -> None:
    cadence = Cadence(f"{seconds:.1f}s", "UTC", START)
    last, now = START + since, START + since + more
    after = cadence.after(last)
    assert last < after + 1e-3
    assert after <= last + seconds + 1e-3
    due = cadence.due(last, now)
    assert (due is None) == (after > now)
    if due is not None:
        assert due[0] <= now + 1e-3
        assert cadence.after(due[0]) > due[0]
        assert cadence.due(due[0], now) is None, "what is fired is not due again"


def test_cron_in_a_zone() -> None:
    """Seven in the morning in Berlin, the day on which the clock goes forward among them."""
    cadence = Cadence("0 7 * * *", "Europe/Berlin", START)
    assert at(cadence, "2026-03-28T00:00:00+00:00") == datetime(2026, 3, 28, 6, tzinfo=UTC)
    assert at(cadence, "2026-03-28T06:00:00+00:00") == datetime(2026, 3, 29, 5, tzinfo=UTC)
    half = Cadence("30 2 * * *", "Europe/Berlin", START)
    assert at(half, "2026-03-28T02:00:00+00:00") == datetime(2026, 3, 29, 1, tzinfo=UTC), "a time that there is not"
    weekdays = Cadence("*/15 8 * * mon-fri", "UTC", START)
    assert at(weekdays, "2026-03-27T08:45:00+00:00") == datetime(2026, 3, 30, 8, tzinfo=UTC)


def test_cron_that_was_missed() -> None:
    cadence = Cadence("*/10 * * * *", "UTC", START)
    assert cadence.due(START, START + 599) is None
    assert cadence.due(START, START + 1805) == (START + 1800, 2)
    long = Cadence("* * * * *", "UTC", START).due(START, START + 86400 * 365 + 30)
    assert long == (START + 86400 * 365, COUNTED), "so many are not counted one by one"


@pytest.mark.parametrize(
    "every", ["", "10", "ten minutes", "10x", "m", "0s", "0.5s", "* * *", "61 * * * *", "0 0 30 2 *", "a b c d e"]
)
def test_what_is_none(every: str) -> None:
    with pytest.raises(ConfigurationError, match=r"every="):
        Cadence(as_text(every), "UTC", START)


@pytest.mark.parametrize("every", [None, True, object(), b"10m"])
def test_other_types(every: Any) -> None:
    with pytest.raises(ConfigurationError, match="give an interval"):
        as_text(every)


def test_as_text() -> None:
    assert [as_text(every) for every in (90, 1.5, timedelta(minutes=2), " 0  7 * * * ")] == [
        "90s", "1.5s", "120s", "0 7 * * *",
    ]  # fmt: skip


def test_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zone_of("UTC") is UTC
    assert zone_of("-03:30").utcoffset(None) == -timedelta(hours=3, minutes=30)
    with pytest.raises(ConfigurationError, match=r"tz='Mars/Olympus'.*Europe/Berlin.*tzdata"):
        zone_of("Mars/Olympus")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert settings.local_zone() == "Europe/Berlin"
    monkeypatch.setenv("TZ", "UTC")
    assert settings.local_zone() == "UTC"
    monkeypatch.delenv("TZ")
    assert settings.local_zone() is None or zone_of(str(settings.local_zone()))
    assert zone_of(offset_name()) is not None
