"""Names, delays in steps, and frames: what RabbitMQ's adapter works out by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from qnb.brokers.rabbitmq.names import LONGEST_DELAY, Names, delay_ms
from qnb.brokers.rabbitmq.wire import Content, Properties, Splitter, decode_header, encode_content
from qnb.errors import ConfigurationError, Unsupported


@given(st.floats(0.001, LONGEST_DELAY))
def test_a_delay_is_never_too_early_and_hardly_too_late(seconds: float) -> None:
    late = delay_ms(seconds) / 1000 - seconds
    assert -0.0006 < late <= max(0.01, 0.05 * seconds)


def test_few_queues_serve_many_delays() -> None:
    assert len({delay_ms(seconds / 100) for seconds in range(1, 60_000)}) < 600


def test_a_delay_beyond_the_servers_clock_is_refused() -> None:
    with pytest.raises(Unsupported, match="45 days"):
        delay_ms(LONGEST_DELAY + 1)


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_queues_share_a_name(prefix: str, name: str, other_prefix: str, other: str) -> None:
    if (prefix, name) != (other_prefix, other) and all(len(text) < 20 for text in (prefix, name, other_prefix, other)):
        kinds = (Names.queue, Names.urgent, Names.dead)
        mine = {kind(Names(prefix), name) for kind in kinds}
        assert mine.isdisjoint({kind(Names(other_prefix), other) for kind in kinds})


def test_too_long_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="255 bytes"):
        Names("qnb").queue("ü" * 130)


@given(
    st.binary(max_size=300),
    st.integers(0, 9),
    st.sampled_from(["", "abc"]),
    st.sampled_from(["", "event"]),
    st.booleans(),
)
def test_pika_reads_what_is_written_here(body: bytes, priority: int, name: str, kind: str, headers: bool) -> None:
    properties = Properties(name, {"qnb-failed": 2} if headers else {}, priority, kind)
    data = encode_content(7, Content("", "the queue", body, properties), body_max=100)
    frames = [frame.decode_frame(raw_frame(*parts))[1] for parts in Splitter().feed(data)]
    assert [each.channel_number for each in frames] == [7] * len(frames)
    method, header, *rest = frames
    assert isinstance(method.method, spec.Basic.Publish)
    assert (method.method.routing_key, method.method.mandatory) == ("the queue", True)
    assert b"".join(each.fragment for each in rest) == body
    assert (header.body_size, header.properties.delivery_mode) == (len(body), 2)
    said = header.properties
    assert (said.message_id or "", said.priority or 0, said.type or "") == (name, priority, kind)
    payload = next(parts[2] for parts in Splitter().feed(data) if parts[0] == spec.FRAME_HEADER)
    assert decode_header(payload) == (len(body), properties)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 40))
def test_frames_are_found_however_they_arrive(bodies: list[bytes], step: int) -> None:
    data = b"".join(raw_frame(3, 1, body) for body in bodies)
    splitter = Splitter()
    found = [one for at in range(0, len(data), step) for one in splitter.feed(data[at : at + step])]
    assert [payload for _, _, payload in found] == bodies


def raw_frame(kind: int, channel: int, payload: bytes) -> bytes:
    return kind.to_bytes(1) + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + b"\xce"
