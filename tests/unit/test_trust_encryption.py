"""Encrypted messages, and several keys: what is opened, what is refused, and how it looks on the wire."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from qnb import settings
from qnb.codec.signing import FRAME, NOTE, OUTCOMES, Signer
from qnb.errors import BadMessage, BadSignature, ConfigurationError, MessageError
from qnb.message import Event, Outcomes, Progress, Reply
from tests.contract.conftest import run_python

KEY = b"a key for the tests of encryption"
OLD, NEW = b"the key that was used before", b"the key that comes after it"


@given(st.binary(max_size=2000))
def test_round_trip(body: bytes) -> None:
    plain, secret = Signer(KEY), Signer(KEY, encrypt=True)
    sealed = secret.seal(FRAME, body)
    assert plain.unseal(FRAME, sealed) == secret.unseal(FRAME, sealed) == body
    assert secret.unseal(FRAME, plain.seal(FRAME, body)) == body, "what is not encrypted is read as ever"
    assert len(body) < 8 or body not in sealed


def test_as_docs_wire_says() -> None:
    """Read with nothing of qnb."""
    sealed = Signer(KEY, encrypt=True).seal(OUTCOMES, b"the body")
    assert sealed[:2] + sealed[6:7] == b"q\x01O"
    derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"qnb encryption").derive(KEY)
    assert AESGCM(derived).decrypt(sealed[7:19], sealed[19:], sealed[:7]) == b"the body"
    assert len(sealed) == 7 + 12 + len(b"the body") + 16


def test_every_byte_counts() -> None:
    signer = Signer(KEY, encrypt=True)
    sealed = signer.seal(FRAME, b"the body of a message")
    for at in range(len(sealed)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(sealed)
            changed[at] ^= bit
            with pytest.raises(MessageError):
                signer.unseal(FRAME, bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(MessageError):
            signer.unseal(FRAME, sealed[:length])
    with pytest.raises(BadSignature, match="purpose"):
        signer.unseal(NOTE, sealed)
    with pytest.raises(BadSignature, match="key"):
        Signer(OLD).unseal(FRAME, sealed)
    with pytest.raises(BadMessage):
        signer.unseal(FRAME, b"q\x01")


def test_no_two_are_alike() -> None:
    signer = Signer(KEY, encrypt=True)
    assert len({signer.seal(FRAME, b"the same")[7:19] for _ in range(1000)}) == 1000


def test_what_is_about_an_encrypted_run_is_encrypted() -> None:
    """By whoever tells it: a worker is not told to encrypt."""
    worker = Signer(KEY)
    for run, encrypted in (("9f86d08188-3e", True), ("9f86d08188-3", False)):
        outcomes = Outcomes(run, 0, 1, b"", b"", b"", "w")
        for message in (outcomes, Progress(run, [1], 2, "w", 1.0), Event("task-done", 1.0, "w", run)):
            assert worker.pack(NOTE, message)[6:7].isupper() is encrypted
        assert worker.about(run).seal(NOTE, b"")[6:7].isupper() is encrypted
    asked, plain = Signer(KEY, encrypt=True).seal(NOTE, b""), worker.seal(NOTE, b"")
    assert worker.answering(asked).pack(NOTE, Reply("id", "w"))[6:7] == b"N"
    assert worker.answering(plain).pack(NOTE, Reply("id", "w"))[6:7] == b"n"


def test_several_keys() -> None:
    both, old, new = Signer(NEW + b"\n" + OLD), Signer(OLD), Signer(NEW)
    assert both.key_ids == [new.key_id, old.key_id]
    assert both.key_id == new.key_id
    for encrypt in (False, True):
        for one in (Signer(OLD, encrypt=encrypt), Signer(NEW, encrypt=encrypt)):
            assert both.unseal(FRAME, one.seal(FRAME, b"body")) == b"body"
    assert new.unseal(FRAME, both.seal(FRAME, b"body")) == b"body", "the first one signs"
    with pytest.raises(BadSignature) as caught:
        old.unseal(FRAME, both.seal(FRAME, b"body"))
    assert old.key_id in str(caught.value)
    assert new.key_id in str(caught.value)
    forged = bytearray(new.seal(FRAME, b"body"))
    forged[2:6] = old.seal(FRAME, b"body")[2:6]
    with pytest.raises(BadSignature, match="changed on the way"):
        both.unseal(FRAME, bytes(forged))
    with pytest.raises(BadSignature) as caught:
        both.unseal(FRAME, Signer(KEY).seal(FRAME, b"body"))
    assert all(one.key_id in str(caught.value) for one in (old, new, Signer(KEY)))


@pytest.mark.parametrize("text", [f"{NEW.decode()},{OLD.decode()}", f"{NEW.decode()}\n{OLD.decode()}\n"])
def test_where_several_keys_come_from(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from pathlib import Path

    monkeypatch.setenv("QNB_KEY", text)
    assert settings.load_key() == NEW + b"\n" + OLD
    assert settings.load_key(text) == settings.load_key(text.encode()) == NEW + b"\n" + OLD
    assert settings.load_key(settings.load_key().decode()) == NEW + b"\n" + OLD, "as a local worker gets it"
    file = Path(str(tmp_path)) / "key"
    file.write_text(text)
    file.chmod(0o600)
    assert settings.read_key_file(file) == NEW + b"\n" + OLD
    assert settings.load_key("a phrase, with a comma in it") == b"a phrase, with a comma in it"
    for short in (f"{NEW.decode()},short", "short,short", ",", f"short\n{NEW.decode()}"):
        with pytest.raises(ConfigurationError, match="16"):
            settings.load_key(short)
        file.write_text(short)
        with pytest.raises(ConfigurationError, match="cut short"):
            settings.read_key_file(file)


def test_missing_library() -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import qnb
qnb.Session("memory://x", workers=0, key="a key that is long enough").close()
try:
    qnb.Session("memory://y", workers=0, key="a key that is long enough", encrypt=True)
except qnb.MissingLibrary as error:
    print(error)
"""
    done = run_python(code)
    assert "pip install 'qnb[encrypt]'" in done.stdout, done.stdout + done.stderr


def test_the_library_is_not_loaded_before_it_is_needed() -> None:
    code = """
import sys, qnb
session = qnb.Session("memory://x", workers=1, key="a key that is long enough")
session.submit(abs, -1).result(10)
session.close()
print([name for name in sys.modules if name.split(".")[0] == "cryptography"])
"""
    done = run_python(code)
    assert done.stdout == "[]\n", done.stdout + done.stderr
