"""Nothing is opened whose seal does not hold."""

from __future__ import annotations

import contextlib
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.codec.signing import FRAME, NOTE, OUTCOMES, Signer, decode
from qnb.errors import BadMessage, BadSignature, MessageError
from qnb.message import Frame

KEY = b"a key for the tests of signing"


@given(st.binary(min_size=16, max_size=200).filter(lambda key: b"\n" not in key), st.binary(max_size=2000))
def test_round_trip(key: bytes, body: bytes) -> None:
    signer = Signer(key)
    sealed = signer.seal(FRAME, body)
    assert signer.unseal(FRAME, sealed) == body
    assert sealed[7:39] == hmac.new(key, sealed[:7] + body, hashlib.sha256).digest(), "HMAC as everybody knows it"


def test_every_byte_counts() -> None:
    signer = Signer(KEY)
    sealed = signer.seal(FRAME, b"the body of a message")
    for position in range(len(sealed)):
        for flip in (1, 0x80):
            changed = bytearray(sealed)
            changed[position] ^= flip
            with pytest.raises(MessageError):
                signer.unseal(FRAME, bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(MessageError):
            signer.unseal(FRAME, sealed[:length])
    with pytest.raises(BadSignature):
        signer.unseal(FRAME, sealed + b"\0")


def test_wrong_purpose() -> None:
    sealed = Signer(KEY).seal(FRAME, b"body")
    for purpose in (NOTE, OUTCOMES):
        with pytest.raises(BadSignature, match="purpose"):
            Signer(KEY).unseal(purpose, sealed)


def test_wrong_key_names_both_ids_and_no_key() -> None:
    mine, other = Signer(KEY), Signer(b"another key, quite another")
    with pytest.raises(BadSignature) as caught:
        mine.unseal(FRAME, other.seal(FRAME, b"body"))
    assert mine.key_id in str(caught.value)
    assert other.key_id in str(caught.value)
    assert "QNB_KEY" in str(caught.value)
    assert KEY.decode() not in f"{caught.value} {mine!r}"


def test_the_key_id_alone_opens_nothing() -> None:
    """Someone who saw a message knows the key id; the MAC still has to hold."""
    sealed = Signer(KEY).seal(FRAME, b"body")
    forged = sealed[:7] + hmac.new(b"guess", sealed[:7] + b"evil", hashlib.sha256).digest() + b"evil"
    with pytest.raises(BadSignature, match="changed on the way"):
        Signer(KEY).unseal(FRAME, forged)


def test_another_version() -> None:
    sealed = bytearray(Signer(KEY).seal(FRAME, b"body"))
    sealed[1] = 9
    with pytest.raises(BadMessage, match="wire version 9"):
        Signer(KEY).unseal(FRAME, bytes(sealed))


@given(st.binary(max_size=200))
def test_foreign_bytes(data: bytes) -> None:
    with pytest.raises(MessageError):
        Signer(KEY).unseal(FRAME, data)


@given(st.binary(max_size=200))
def test_sealed_nonsense_is_a_bad_message(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        decode(data, Frame)
