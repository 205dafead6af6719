"""Rates and times that a worker was told for single tasks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import ConfigurationError
from qnb.message import Frame, Function, Options
from qnb.worker.limits import Limits, per_second


@pytest.mark.parametrize(
    "rate, expected",
    [("10/s", 10.0), ("600/m", 10.0), ("36/h", 0.01), ("2.5", 2.5), (4, 4.0), ("0", None), ("0/m", None), (None, None)],
)
def test_rates(rate: str | float | None, expected: float | None) -> None:
    assert per_second(rate) == expected


@pytest.mark.parametrize("rate", ["often", "10/d", "-1/s", "/s"])
def test_what_is_no_rate(rate: str) -> None:
    with pytest.raises(ConfigurationError, match=r"10/s"):
        per_second(rate)


@given(
    rate=st.floats(0.1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), min_size=1, max_size=60),
)
def test_never_more_than_the_rate(rate: float, steps: list[tuple[float, int]]) -> None:
    """Over any time from the start: the rate times that, and what a full bucket holds."""
    limits, now, started = Limits(), 100.0, 0
    limits.limit_rate("f", rate, now)
    for seconds, wanted in steps:
        now += seconds
        allowed = limits.may_start("f", wanted, now)
        assert 0 <= allowed <= wanted
        started += allowed
        assert started <= rate * (now - 100.0) + max(1.0, rate) + 1e-6


@given(rate=st.floats(0.1, 100))
def test_the_rate_is_reached(rate: float) -> None:
    limits, now, started = Limits(), 0.0, 0
    limits.limit_rate("f", rate, now)
    for _ in range(200):
        now += 0.05
        started += limits.may_start("f", 1000, now)
    assert started >= rate * now - 1


def test_others_are_not_limited() -> None:
    limits = Limits()
    assert not limits.rated
    limits.limit_rate("f", 1.0, 0.0)
    assert (limits.rated, limits.may_start("g", 1000, 0.0)) == (True, 1000)
    limits.limit_rate("f", None, 0.0)
    assert (limits.rated, limits.may_start("f", 1000, 0.0)) == (False, 1000)


def test_how_long_to_wait() -> None:
    limits = Limits()
    limits.limit_rate("f", 2.0, 0.0)
    assert limits.may_start("f", 5, 0.0) == 1
    assert limits.wait("f", 3) == 1.5
    assert limits.wait("g", 3) == 0.0


def test_times_replace_those_of_the_submit() -> None:
    frame = Frame("r", 0, 1, Function(b"h", "f"), b"", Options(timeout=60.0, soft_timeout=50.0))
    limits = Limits()
    assert limits.times(frame) == (60.0, 50.0)
    limits.limit_time("f", 5.0, None)
    assert limits.times(frame) == (5.0, None)
    limits.limit_time("f", None, None)
    assert limits.times(frame) == (60.0, 50.0)
