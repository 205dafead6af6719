"""Seal and unseal: HMAC-SHA256 over version, key id, purpose and body, checked before anything is opened.

A sealed message is: magic b"q", version (1 byte), key id (4 bytes), purpose (1 byte), MAC (32 bytes), body.
An encrypted one has the purpose as a capital letter, then a nonce and the body under AES-GCM (encryption.py).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeVar

import msgspec

from qnb.codec.bounds import fault_of
from qnb.codec.encryption import NONCE_BYTES, TAG_BYTES, Cipher
from qnb.errors import BadMessage, BadSignature
from qnb.message import UNREADABLE, WIRE_VERSION

# What a sealed body is for: a body sealed for one purpose is refused for another.
FRAME, OUTCOMES, NOTE, CODE, BLOB, RUN = b"f", b"o", b"n", b"c", b"b", b"r"

_HEAD = b"q" + bytes([WIRE_VERSION])
_BODY = 39
_SMALLEST = 7 + NONCE_BYTES + TAG_BYTES  # of an encrypted message

T = TypeVar("T")


# What a run of a session that encrypts ends with: whatever is told of it is encrypted by whoever tells it.
ENCRYPTED = "e"


class _Key:
    """One signing key, and what is made of it once."""

    __slots__ = ("_cipher", "_inner", "_outer", "_secret", "head")

    def __init__(self, key: bytes) -> None:
        self.head = _HEAD + hashlib.sha256(b"qnb key id" + key).digest()[:4]
        self._secret = key
        self._cipher: Cipher | None = None
        # HMAC by its definition, with both key blocks hashed once: half the time of hmac.digest for a small message,
        # and no copy of a large one.
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(self, head: bytes, body: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(head)
        inner.update(body)
        outer.update(inner.digest())
        return outer.digest()

    @property
    def cipher(self) -> Cipher:
        if self._cipher is None:
            self._cipher = Cipher(self._secret)
        return self._cipher


class Signer:
    """Seals with a key, and unseals what was sealed with it or with any other that it is given.

    `keys` has one key a line; the first seals. `encrypt`: all that is sealed is encrypted, too. Otherwise only what is
    about an encrypted run. What comes encrypted is opened either way. Its repr names the key's id, never the key.
    """

    __slots__ = ("_encrypts", "_key", "_others")

    def __init__(self, keys: bytes, *, encrypt: bool = False) -> None:
        first, *others = map(_Key, keys.split(b"\n"))
        self._key = first
        self._others = {key.head: key for key in others}
        self._encrypts = encrypt
        if encrypt:
            _ = first.cipher  # a library that is missing is told now

    def __repr__(self) -> str:
        return f"<Signer key id {self.key_id}{', encrypting' if self._encrypts else ''}>"

    @property
    def key_id(self) -> str:
        """Eight hex digits that tell keys apart and give nothing of the key away: the key that seals."""
        return self._key.head[2:].hex()

    @property
    def key_ids(self) -> list[str]:
        """Those of all keys that are read, the one that seals first."""
        return [self.key_id, *(head[2:].hex() for head in self._others)]

    def about(self, run: str) -> Signer:
        """The signer for what is about a run: one that encrypts when the run is encrypted."""
        return self if self._encrypts or not run.endswith(ENCRYPTED) else self._encrypting()

    def answering(self, sealed: bytes) -> Signer:
        """The signer for an answer: one that encrypts when what is answered was."""
        return self if self._encrypts or not sealed[6:7].isupper() else self._encrypting()

    def _encrypting(self) -> Signer:
        twin = Signer.__new__(Signer)
        twin._key, twin._others, twin._encrypts = self._key, self._others, True
        return twin

    def seal(self, purpose: bytes, body: bytes) -> bytes:
        """The body with its header and MAC in front."""
        key = self._key
        if self._encrypts:
            return key.cipher.encrypt(key.head + purpose.upper(), body)
        head = key.head + purpose
        return b"".join((head, key.mac(head, body), body))

    def unseal(self, purpose: bytes, data: bytes) -> bytes:
        """The body, once its MAC is seen to hold; BadMessage or BadSignature otherwise."""
        head, key = data[:7], self._key
        if head != key.head + purpose or len(data) < _BODY:  # not as most are: encrypted, of another key, or refused
            key = self._key_of(purpose, data)
            if head[6:].isupper():
                return key.cipher.decrypt(head, data)
        body = data[_BODY:]
        if not hmac.compare_digest(data[7:_BODY], key.mac(head, body)):
            raise BadSignature("the signature does not hold: the message was changed on the way, and is not opened")
        return body

    def _key_of(self, purpose: bytes, data: bytes) -> _Key:
        encrypted = data[6:7].isupper()
        if len(data) < (_SMALLEST if encrypted else _BODY) or data[:1] != b"q":
            raise BadMessage(f"{len(data)} bytes that are not a message of qnb: something else writes to this queue")
        if data[1] != WIRE_VERSION:
            raise BadMessage(
                f"a message of wire version {data[1]}, this qnb speaks {WIRE_VERSION}: use the same qnb on both sides"
            )
        key = self._key if data[:6] == self._key.head else self._others.get(data[:6])
        if key is None:
            raise BadSignature(
                f"signed with key {data[2:6].hex()}, this side has key {' and '.join(self.key_ids)}: "
                "give both the same key (QNB_KEY, or Session(key=…) and `qnb worker --key-file`)"
            )
        if data[6:7] != (purpose.upper() if encrypted else purpose):
            raise BadSignature(f"sealed for purpose {data[6:7]!r}, not {purpose!r}: refused")
        return key

    def pack(self, purpose: bytes, message: msgspec.Struct) -> bytes:
        """Encode and seal a struct of message.py; encrypted when the run is that it is about."""
        body = _encoder.encode(message)
        if self._encrypts or getattr(message, "run", "")[-1:] == ENCRYPTED:
            key = self._key
            return key.cipher.encrypt(key.head + purpose.upper(), body)
        return self.seal(purpose, body)

    def unpack(self, purpose: bytes, data: bytes, kind: type[T]) -> T:
        """Unseal and decode a struct of message.py."""
        return decode(self.unseal(purpose, data), kind)


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {}


def encode(message: object) -> bytes:
    """A struct of message.py as msgpack."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """A struct of message.py from msgpack; BadMessage when it is none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message = decoder.decode(body)
    except UNREADABLE as error:
        raise BadMessage(f"not a {kind.__name__} of this version of qnb: {error}") from error
    if (fault := fault_of(message)) is not None:
        raise BadMessage(f"a {kind.__name__} that does not fit together: {fault}")
    return message  # type: ignore[return-value]
