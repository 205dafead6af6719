"""AES-256-GCM under a key of its own, drawn from the signing key. The library is loaded when first needed."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from qnb.errors import BadSignature, MissingLibrary

NONCE_BYTES, TAG_BYTES = 12, 16
_INFO = b"qnb encryption"


def derive(key: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt: 32 bytes that say nothing of the signing key, nor of its MACs."""
    extracted = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, _INFO + b"\x01", hashlib.sha256)


class Cipher:
    """Encrypts and decrypts with one key. Nonces are random: good for 2³² messages a key."""

    __slots__ = ("_aead", "_invalid")

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingLibrary(
                "encrypted messages need the library cryptography, which is not installed: pip install 'qnb[encrypt]'"
            ) from error
        self._aead: Any = AESGCM(derive(key))
        self._invalid = InvalidTag

    def encrypt(self, head: bytes, body: bytes) -> bytes:
        """Head, nonce, then the body encrypted, with its tag; the tag is over the head, too."""
        nonce = os.urandom(NONCE_BYTES)
        return b"".join((head, nonce, self._aead.encrypt(nonce, body, head)))

    def decrypt(self, head: bytes, data: bytes) -> bytes:
        """The body of what `encrypt` has made; BadSignature when a bit of it is another."""
        start = len(head)
        try:
            body: bytes = self._aead.decrypt(data[start : start + NONCE_BYTES], data[start + NONCE_BYTES :], head)
        except self._invalid:
            raise BadSignature(
                "the tag of an encrypted message does not hold: it was changed on the way, and is not opened"
            ) from None
        return body
