"""URLs taken apart, passwords kept out of sight, and the key."""

from __future__ import annotations

import stat
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qnb import settings
from qnb.errors import ConfigurationError
from qnb.settings import parse_url

MARK = "S3KR3T"


@pytest.mark.parametrize(
    "url, scheme, hosts, path",
    [
        ("redis://host", "redis", (("host", None),), ""),
        ("redis://host:7000/3", "redis", (("host", 7000),), "/3"),
        ("REDIS://Host/0", "redis", (("Host", None),), "/0"),
        ("redis+sentinel://a:1,b:2,c/0", "redis+sentinel", (("a", 1), ("b", 2), ("c", None)), "/0"),
        ("redis://[::1]:6379/0", "redis", (("::1", 6379),), "/0"),
        ("redis://[::1]/0", "redis", (("::1", None),), "/0"),
        ("redis+socket:///run/redis.sock?db=1", "redis+socket", (), "/run/redis.sock"),
        ("sqlite:", "sqlite", (), ""),
        ("sqlite:////tmp/a@b.db", "sqlite", (), "//tmp/a@b.db"),
        ("memory://name", "memory", (("name", None),), ""),
        ("amqp://guest:guest@host//", "amqp", (("host", None),), "//"),
        ("sentinel://h:26379", "redis+sentinel", (("h", 26379),), ""),
        ("db+postgresql://u@h/d", "postgresql", (("h", None),), "/d"),
        ("pyamqp://h", "amqp", (("h", None),), ""),
        ("unix:///s", "redis+socket", (), "/s"),
    ],
)
def test_parse(url: str, scheme: str, hosts: tuple[tuple[str, int | None], ...], path: str) -> None:
    address = parse_url(url)
    assert (address.scheme, address.hosts, address.path) == (scheme, hosts, path)


@pytest.mark.parametrize(
    "url, path",
    [
        ("sentinel://a:1;sentinel://b:2;sentinel://c/0?master=m", "/0"),
        ("sentinel://:pw@a:1;sentinel://:pw@b:2;sentinel://:pw@c", ""),
        ("sentinel://a:1/3;sentinel://b:2/3;sentinel://c/3", "/3"),
    ],
)
def test_sentinels_as_celery_writes_them(url: str, path: str) -> None:
    address = parse_url(url)
    assert (address.hosts, address.path) == ((("a", 1), ("b", 2), ("c", None)), path)
    assert address.password == ("pw" if "pw" in url else None)
    assert parse_url(address.original) == parse_url(parse_url(address.original).original) == address


def test_login_and_options() -> None:
    address = parse_url("redis://us%40er:p%2Fa%3As@h/0?prefix=a%20b&lease=2.5&empty=")
    assert (address.user, address.password) == ("us@er", "p/a:s")
    assert address.options == {"prefix": "a b", "lease": "2.5", "empty": ""}
    assert address.number("lease", 1.0) == 2.5
    assert address.number("other", 1.0) == 1.0
    with pytest.raises(ConfigurationError, match="not a number"):
        address.number("prefix", 1.0)
    assert (parse_url("redis://:p@h").user, parse_url("redis://:p@h").password) == (None, "p")


@pytest.mark.parametrize("url", ["", "host", "//host", "redis//h", "re/dis://h", ":x"])
def test_no_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://host/0"):
        parse_url(url)


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "99999999"])
def test_wrong_port(port: str) -> None:
    with pytest.raises(ConfigurationError, match="port in the URL of redis:"):
        parse_url(f"redis://host:{port}/0")


SCHEMES = st.sampled_from(["redis", "rediss", "amqp", "redis+sentinel", "postgresql", "nosuch"])
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@given(SCHEMES, st.booleans(), TEXT, TEXT)
@example("redis", False, "/", "")
@example("redis", False, "1/", "")
@example("redis", False, "1?", "")
@example("redis", False, "1#", "")
@example("redis", False, "[", "")
@example("redis", False, "℀", "")
@example("redis", False, "", "@")
@example("redis", False, ":", ":")
def test_a_password_is_never_shown(scheme: str, encoded: bool, before: str, after: str) -> None:
    """Encoded as it should be, or pasted in as it is: neither what is shown nor an error has it."""
    password = f"{before}{MARK}{after}"
    url = f"{scheme}://user:{quote(password, safe='') if encoded else password}@host.example:6379/0?prefix=x"
    try:
        address = parse_url(url)
    except ConfigurationError as error:
        assert not encoded
        shown = "".join(traceback.format_exception(error)).replace(url, "")
        assert MARK not in f"{error} {error!r} {error.__cause__}"  # noqa: PT017
        assert MARK not in shown.split("Error:")[-1]
        return
    assert MARK not in f"{address} {address!r} {settings.redact(url)}"
    if encoded:
        assert address.password == password
        assert address.hosts == (("host.example", 6379),)
        assert parse_url(str(address)).user == address.user


@pytest.mark.parametrize("name", ["password", "sentinel_password", "secret", "token", "aws_secret_access_key"])
def test_secrets_among_the_options(name: str) -> None:
    address = parse_url(f"redis://h/0?{name}={MARK}")
    assert MARK not in f"{address} {address!r}"
    assert address.options[name] == MARK


# Environment ----------------------------------------------------------------------------------------------------


def test_order_of_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QNB_BROKER", raising=False)
    monkeypatch.delenv("QNB_BACKEND", raising=False)
    assert settings.broker_url(None) == "sqlite:"
    assert settings.backend_url(None) is None
    monkeypatch.setenv("QNB_BROKER", "redis://env")
    monkeypatch.setenv("QNB_BACKEND", "memory://env")
    assert settings.broker_url(None) == "redis://env"
    assert settings.broker_url("memory:") == "memory:"
    assert settings.backend_url(None) == "memory://env"
    assert settings.backend_url("sqlite:") == "sqlite:"


def test_embedded_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings.embedded_path(parse_url("sqlite:")) == tmp_path / ".qnb" / "qnb.db"
    assert (tmp_path / ".qnb" / ".gitignore").read_text() == "*\n"
    assert settings.embedded_path(parse_url("sqlite:///x.db")) == tmp_path / "x.db"
    assert settings.embedded_path(parse_url(f"sqlite:///{tmp_path}/y.db")) == tmp_path / "y.db"
    absolute = settings.absolute_url("sqlite:?lease=2")
    assert absolute == f"sqlite:///{tmp_path}/.qnb/qnb.db?lease=2"
    assert settings.absolute_url(absolute) == absolute
    assert settings.absolute_url("redis://h/0") == "redis://h/0"


# The key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with no key yet."""
    monkeypatch.delenv("QNB_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_key_file(home: Path) -> None:
    key = settings.load_key()
    path = home / "config" / "qnb" / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert settings.load_key() == key == path.read_text().strip().encode()
    assert len(key) == 64
    assert list(path.parent.iterdir()) == [path]


def test_key_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNB_KEY", "the key of the environment")
    assert settings.load_key() == b"the key of the environment"
    assert settings.load_key("the key that was given") == b"the key that was given"
    assert settings.load_key(b"the key as bytes here") == b"the key as bytes here"
    with pytest.raises(ConfigurationError, match="shorter than 16"):
        settings.load_key("short")


def test_key_file_that_others_can_read(home: Path) -> None:
    settings.load_key()
    (home / "config" / "qnb" / "key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        settings.load_key()


def test_key_file_cut_short(home: Path) -> None:
    settings.load_key()
    (home / "config" / "qnb" / "key").write_text("")
    with pytest.raises(ConfigurationError, match="cut short"):
        settings.load_key()


def test_home_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the key is kept beside the tasks."""
    (home / "config").write_text("a file where the folder should be")
    key = settings.load_key()
    assert (home / ".qnb" / "key").read_text().strip().encode() == key
    assert (home / ".qnb" / ".gitignore").exists()


def test_two_processes_make_one_key(home: Path) -> None:
    import threading

    found: list[bytes] = []
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        found.append(settings.load_key())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
