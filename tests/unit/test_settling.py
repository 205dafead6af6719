"""Settling a turn while what it needs is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qnb.brokers.base import Delivery, Turn
from qnb.codec.signing import Signer
from qnb.errors import BackendUnavailable
from qnb.message import Blob, Frame, Function
from qnb.worker import actions as act
from qnb.worker.settling import Settling

ACK = act.Ack(Delivery("q", b"frame"))
FRAME = Frame("r", 0, 1, Function(b"h" * 32, "f", b"code"), b"x" * 1000, reply_to="s.me")


def away(*_: object) -> None:
    raise BackendUnavailable("it is away")


@pytest.mark.parametrize(
    "action",
    [
        act.Keep("r", 0, 1, b"", b"data", "s.me", aside=[("folder", Blob("name", 1))]),
        act.Keep("r", 0, 1, b"", b"data", "s.me", doubtful=True),
        act.Publish(FRAME, "q"),
    ],
    ids=["a value put aside", "perhaps stored by others", "to be tried again"],
)
def test_stopped_cold_it_acks_nothing_that_it_could_not_keep(action: act.Action) -> None:
    """Nor does it store an outcome whose value is nowhere: another worker runs the call again."""
    settled: list[Turn] = []
    backend = SimpleNamespace(blobs=True, fetch_many=away, put_blob=away, has_blob=away)
    worker: Any = SimpleNamespace(
        signer=Signer(b"k" * 20),
        broker=SimpleNamespace(
            partner=lambda backend: lambda consumer, turn: settled.append(turn),
            features=SimpleNamespace(limits=SimpleNamespace(message_bytes=100)),
        ),
        backend=backend,
        bus=None,
        consumer=None,
        files=SimpleNamespace(take_in=away),
        cold=True,
    )
    Settling(worker).turn([action, ACK])
    assert settled == []
