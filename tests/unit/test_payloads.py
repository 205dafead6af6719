"""Arguments and values as bytes, and back; cutting them opens nothing."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.codec.outcomes import gaps, read_times, slice_outcomes
from qnb.codec.payloads import (
    count_calls,
    decode_calls,
    decode_values,
    encode_columns,
    encode_values,
    is_plain,
    slice_calls,
    slice_values,
)
from qnb.codec.pickling import dumps, loads
from qnb.codec.plain import encode_call
from qnb.errors import BadMessage
from qnb.message import DONE, FAILED, Failure, Outcomes
from qnb.session.calls import pack_frames

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ANY = (
    PLAIN
    | st.tuples(PLAIN)
    | st.lists(PLAIN, max_size=3)
    | st.complex_numbers(allow_nan=False)
    | st.dictionaries(PLAIN, PLAIN, max_size=2)
)


@st.composite
def calls(draw: Any, values: Any = ANY) -> tuple[list[list[Any]], list[str]]:
    width, count = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    columns = [draw(st.lists(values, min_size=count, max_size=count)) for _ in range(width)]
    return columns, [f"n{i}" for i in range(draw(st.integers(0, width)))]


def opened(data: bytes) -> list[Any]:
    pickled, found = decode_calls(data)
    return [loads(call) if pickled else (tuple(call[0]), dict(call[1])) for call in found]


def expected(columns: list[list[Any]], names: list[str]) -> list[Any]:
    positional = len(columns) - len(names)
    return [(row[:positional], dict(zip(names, row[positional:], strict=True))) for row in zip(*columns, strict=True)]


@given(calls())
def test_calls(given_calls: tuple[list[list[Any]], list[str]]) -> None:
    columns, names = given_calls
    plain = all(map(is_plain, columns))
    data = encode_columns(columns, names, plain)
    assert opened(data) == expected(columns, names)
    assert [[type(v) for v in a] for a, _ in opened(data)] == [
        [type(v) for v in a] for a, _ in expected(columns, names)
    ]
    assert count_calls(data) == len(columns[0])


@given(calls(), st.data())
def test_slice_calls(given_calls: tuple[list[list[Any]], list[str]], data: Any) -> None:
    columns, names = given_calls
    start = data.draw(st.integers(0, len(columns[0])))
    stop = data.draw(st.integers(start, len(columns[0])))
    payload = encode_columns(columns, names, all(map(is_plain, columns)))
    assert opened(slice_calls(payload, start, stop)) == expected(columns, names)[start:stop]


@given(st.lists(ANY, max_size=8), st.data())
def test_values(values: list[Any], data: Any) -> None:
    payload, failed = encode_values(values)
    assert not failed
    assert decode_values(payload, loads) == (values, {})
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    assert decode_values(slice_values(payload, start, stop), loads)[0] == values[start:stop]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**100, "\ud800", float("inf"), True, 1.0, b"", ""], ids=repr)
def test_edges_of_plain(value: Any) -> None:
    data = encode_columns([[value, 1]], [], is_plain([value, 1]))
    (((found,), _), _) = opened(data)
    assert found == value
    assert type(found) is type(value)
    assert decode_values(encode_values([value])[0], loads)[0] == [value]


class Text(str):
    """A str that is more than one: it may not be sent as a plain one."""


def test_subclasses_keep_their_class() -> None:
    assert not is_plain([Text("x")])
    found = decode_values(encode_values([Text("x"), True])[0], pickle.loads)[0]
    assert [type(value) for value in found] == [Text, bool]


def test_one_bad_value_spares_the_others() -> None:
    import threading

    payload, failed = encode_values([1, threading.Lock(), [2]])
    assert list(failed) == [1]
    values, broken = decode_values(payload, loads)
    assert values == [1, None, [2]]
    assert not broken


@given(st.binary(max_size=60))
def test_nonsense(data: bytes) -> None:
    for read in (count_calls, decode_calls, lambda d: slice_calls(d, 0, 1)):
        try:
            read(data)  # type: ignore[operator]
        except BadMessage:
            continue
        except (TypeError, ValueError):
            assert read is not count_calls, "this one is asked first, of what comes from outside"


@pytest.mark.parametrize(
    "columns",
    [b"\x93\x01\x90\x92\x91\x01\x91\x01", b"\x93\x02\x90\x92\x91\x01\x92\x01\x02", b"\x93\x00\x90\x90", b"\xc0"],
)
def test_columns_that_do_not_fit(columns: bytes) -> None:
    with pytest.raises(BadMessage):
        count_calls(b"c" + columns)


# Outcomes -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.data())
def test_slice_outcomes(count: int, data: Any) -> None:
    import array

    states = bytes(data.draw(st.lists(st.sampled_from([DONE, FAILED]), min_size=count, max_size=count)))
    times = array.array("d", range(2 * count)).tobytes()
    failures = {i: Failure("E", str(i)) for i, state in enumerate(states) if state == FAILED}
    values = encode_values(list(range(count)))[0]
    outcomes = Outcomes("r", 10, count, states, values, times, "w", failures=failures, outputs={0: "text"})
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part = slice_outcomes(outcomes, start, stop)
    assert (part.first, part.count, part.states) == (10 + start, stop - start, states[start:stop])
    assert decode_values(part.values, loads)[0] == list(range(start, stop))
    assert read_times(part.times).tolist() == [*range(start, stop), *range(count + start, count + stop)]
    assert {i + start: failure.message for i, failure in part.failures.items()} == {
        i: str(i) for i in failures if start <= i < stop
    }
    assert part.outputs == ({0: "text"} if start == 0 else {})


@given(st.integers(0, 20), st.integers(1, 20), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=6))
def test_gaps(first: int, count: int, spans: list[tuple[int, int]]) -> None:
    covered = {i for low, length in spans for i in range(low, low + length)}
    found = gaps(first, count, spans)
    assert [i for low, length in found for i in range(low, low + length)] == [
        i for i in range(first, first + count) if i not in covered
    ]
    assert all(length > 0 for _, length in found)


NESTED = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
ONE_CALL = st.tuples(
    st.lists(NESTED | st.tuples(PLAIN), max_size=2).map(tuple),
    st.dictionaries(st.sampled_from("ab"), NESTED, max_size=1),
)


@given(st.lists(ONE_CALL | st.tuples(st.tuples(NESTED), st.just({})), min_size=1, max_size=40))
def test_calls_packed_one_by_one_and_joined(these: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """Side by side, with one argument or more, with a pickle or without."""
    found = []
    for count, payload in pack_frames([encode_call(*call) or dumps(call) for call in these]):
        assert count_calls(payload) == count
        pickled, calls = decode_calls(payload)
        found += [loads(call) if pickled else call for call in calls]
    assert found == these
