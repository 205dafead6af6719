"""Settling a turn while what it needs is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qnb.brokers.base import Delivery, Turn
from qnb.codec.signing import Signer
from qnb.errors import BackendUnavailable
from qnb.message import Blob
from qnb.worker import actions as act
from qnb.worker.settling import Settling


def test_stopped_cold_it_stores_no_outcome_whose_value_it_could_not_store() -> None:
    """Nor does it ack: another worker runs the call again."""
    settled: list[Turn] = []

    def take_in(*_: object) -> None:
        raise BackendUnavailable("it is away")

    worker: Any = SimpleNamespace(
        signer=Signer(b"k" * 20),
        broker=SimpleNamespace(partner=lambda backend: lambda consumer, turn: settled.append(turn)),
        backend=None,
        bus=None,
        consumer=None,
        files=SimpleNamespace(take_in=take_in),
        cold=True,
    )
    keep = act.Keep("r", 0, 1, b"", b"data", "s.me", aside=[("folder", Blob("name", 1))])
    Settling(worker).turn([keep, act.Ack(Delivery("q", b"frame"))])
    assert settled == []
