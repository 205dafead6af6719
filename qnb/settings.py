"""The only reader of environment and URLs."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from qnb.errors import ConfigurationError, StorageFull

EMBEDDED = "sqlite:"
FOLDER = ".qnb"

# Celery's spellings, so that its users paste the URL they have.
ALIASES = {
    "pyamqp": "amqp",
    "sentinel": "redis+sentinel",
    "confluentkafka": "kafka",
    "gcpubsub": "pubsub",
    "mariadb": "mysql",
    "postgres": "postgresql",
    "redis+tls": "rediss",
    "unix": "redis+socket",
    "redis+unix": "redis+socket",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart. `hosts` has (host, port or None); its str and repr have no password."""

    scheme: str
    hosts: tuple[tuple[str, int | None], ...]
    user: str | None
    password: str | None = field(repr=False)
    path: str
    options: dict[str, str] = field(repr=False)
    original: str = field(repr=False, default="")

    @property
    def host(self) -> str:
        """The first host, or localhost."""
        return self.hosts[0][0] if self.hosts else "localhost"

    def port(self, default: int) -> int:
        """The first host's port."""
        return (self.hosts[0][1] if self.hosts else None) or default

    def number(self, name: str, default: float) -> float:
        """A number of the query; ConfigurationError when it is none."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            raise ConfigurationError(f"{name}={text!r} in {self} is not a number") from None

    def __str__(self) -> str:
        user = quote(self.user) if self.user else ""
        login = f"{user}{':***' if self.password else ''}@" if user or self.password else ""
        hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in self.hosts)
        hidden = re.compile("pass|secret|token|key", re.IGNORECASE)
        query = "&".join(f"{k}={'***' if hidden.search(k) else v}" for k, v in self.options.items())
        slashes = "//" if self.hosts or login or self.path.startswith("/") else ""
        return f"{self.scheme}:{slashes}{login}{hosts}{self.path}{'?' + query if query else ''}"


_ENCODE = "; / ? # and @ in a user name or password are written %2F %3F %23 and %40"


def _host_port(text: str, scheme: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        return text.strip("[]"), None
    if not port.isdigit() or not 0 < int(port) < 65536:
        # What stands there may be part of a password, and is not repeated.
        raise ConfigurationError(f"the port in the URL of {scheme}: is not a number from 1 to 65535{_ENCODE}")
    return host.strip("[]"), int(port)


# sentinel://a:26379;sentinel://b:26379/0
_CELERY_SENTINEL = re.compile(r"(?:/\d*)?;(?:redis\+)?sentinel://(?:[^@/?#;]*@)?", re.IGNORECASE)


def parse_url(url: str) -> Address:
    """Take a broker or backend URL apart; several hosts with commas; percent-encoding undone."""
    scheme, colon, rest = url.partition(":")
    if not colon or not scheme or "/" in scheme:
        raise ConfigurationError("a broker or backend is named by a URL like redis://host/0; got one without a scheme")
    scheme = scheme.lower().removeprefix("db+")  # as Celery's URLs begin
    dialect, _, driver = scheme.partition("+")
    scheme = ALIASES.get(scheme) or "+".join(filter(None, (ALIASES.get(dialect, dialect), driver)))
    if scheme == "redis+sentinel":
        rest = _CELERY_SENTINEL.sub(",", rest)
    try:
        parts = urlsplit("x:" + rest)  # urlsplit knows no scheme with an underscore, and needs none here
    except ValueError:  # whose message has all that stands before the path
        raise ConfigurationError(f"the host in the URL of {scheme}: cannot be read{_ENCODE}") from None
    login, at, hosts = parts.netloc.rpartition("@")
    if parts.netloc and not at and "@" in parts.path + parts.query.partition("=")[0] + parts.fragment:
        raise ConfigurationError(f"the URL of {scheme}: has its @ after the host{_ENCODE}")
    user, _, password = login.partition(":")
    return Address(
        scheme=scheme,
        hosts=tuple(_host_port(host, scheme) for host in hosts.split(",") if host),
        user=unquote(user) or None,
        password=unquote(password) or None,
        path=unquote(parts.path),
        options=dict(parse_qsl(parts.query, keep_blank_values=True)),
        original=scheme + ":" + rest,
    )


def redact(url: str) -> str:
    """The URL without its password."""
    return str(parse_url(url))


def broker_url(given: str | None) -> str:
    """The broker asked for: the argument, else QNB_BROKER, else the embedded file."""
    return given or os.environ.get("QNB_BROKER") or EMBEDDED


def asked_broker() -> str | None:
    """The broker that QNB_BROKER names, if any."""
    return os.environ.get("QNB_BROKER") or None


def backend_url(given: str | None) -> str | None:
    """The backend asked for: the argument, else QNB_BACKEND, else None (the broker's own partner)."""
    return given or os.environ.get("QNB_BACKEND") or None


def embedded_path(address: Address) -> Path:
    """The file of a sqlite: URL, absolute; `./.qnb/qnb.db` when it names none. Makes the folder."""
    # SQLAlchemy's rule: sqlite:///x.db is relative, sqlite:////x.db absolute.
    name = address.path.removeprefix("/") if address.original.startswith("sqlite://") else address.path
    path = Path(name) if name else Path(FOLDER) / "qnb.db"
    path = Path.cwd() / path
    try:
        path.parent.mkdir(0o700 if path.parent.name == FOLDER else 0o777, parents=True, exist_ok=True)
        if path.parent.name == FOLDER and not (path.parent / ".gitignore").exists():
            (path.parent / ".gitignore").write_text("*\n")
    except OSError as error:
        raise StorageFull(
            f"cannot write in {path.parent}: {error.strerror}; start in a folder you may write to, "
            "or name another file: Session('sqlite:////path/to/file.db')"
        ) from error
    return path


def absolute_url(url: str) -> str:
    """The URL with a sqlite file's path made absolute, so that it means the same in another folder."""
    address = parse_url(url)
    if address.scheme != "sqlite":
        return url
    query = url.partition("?")[2]
    return f"sqlite:///{quote(str(embedded_path(address)))}" + (f"?{query}" if query else "")


def pubsub_emulator() -> str | None:
    """The emulator of Google Cloud Pub/Sub that gcloud's tools and libraries are told to use: host:port."""
    return os.environ.get("PUBSUB_EMULATOR_HOST") or None


def calm_grpc() -> None:
    """Before grpc is imported: its C core writes what it notes of connections to stderr, into the notebook."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GLOG_minloglevel", "3")


def local_zone() -> str | None:
    """The name of this machine's time zone, as Europe/Berlin; None where none is set."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named and "/" in named and not named.startswith("/"):
        return named
    if named in ("UTC", "GMT", "UTC0"):
        return "UTC"
    if named:
        return None
    place = os.path.realpath("/etc/localtime")
    _, found, name = place.partition("zoneinfo/")
    if found:
        return "UTC" if name in ("UTC", "Etc/UTC", "Universal", "Etc/Universal", "Zulu") else name
    return None


def in_voila() -> bool:
    """Whether voila runs this kernel: what each cell leaves becomes a page, which asks for its widgets only then."""
    return "VOILA_BASE_URL" in os.environ


def has_notebook_server() -> bool:
    """Whether a Jupyter server started this kernel for a notebook: nbconvert and papermill start their own."""
    return "JPY_SESSION_NAME" in os.environ


def cpu_count() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _key_files() -> list[Path]:
    try:
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    except RuntimeError:  # no home folder at all
        return [Path.cwd() / FOLDER / "key"]
    return [Path(config) / "qnb" / "key", Path.cwd() / FOLDER / "key"]


def read_key_file(name: str | Path) -> bytes:
    """The keys in a file that only its owner may read, one a line; the first one signs."""
    path = Path(name)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"the key file {path} can be read by others: chmod 600 {path}")
    keys = _keys_in(path.read_bytes())
    if not keys or min(map(len, keys)) < 16:
        raise ConfigurationError(f"the key file {path} is empty or cut short: remove it, and a new one is made")
    return b"\n".join(keys)


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name == FOLDER and not (path.parent / ".gitignore").exists():
        (path.parent / ".gitignore").write_text("*\n")
    draft = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex() + "\n")
    try:
        os.link(draft, path)  # whoever links first has made the key; nobody sees half of one
    except FileExistsError:
        pass  # another process made it in this moment: its key is the one to read
    finally:
        draft.unlink()


# A comma, or a line's end. A comma with a space behind it is one of a phrase.
_BETWEEN_KEYS = re.compile(r",(?!\s)|\n")


def _keys_in(given: str | bytes) -> list[bytes]:
    """The keys of a setting or a file. Bytes that are no plain text are one key."""
    if isinstance(given, bytes):
        lines = given.strip().replace(b"\r", b"").split(b"\n")
        if any(_as_text(line) != line for line in lines):
            return [_as_text(given.strip())]
        given = b"\n".join(lines).decode("ascii")
    return [key.encode() for part in _BETWEEN_KEYS.split(given) if (key := part.strip())]


def _as_text(key: bytes) -> bytes:
    """Bytes that an environment variable can hold, since that is how local workers get the key."""
    return key if key.isascii() and key.decode("ascii").isprintable() else key.hex().encode()


def load_key(given: str | bytes | None = None) -> bytes:
    """The signing keys, one a line: the argument, else QNB_KEY, else a per-user file made on first use (mode 0600).

    "new,old" are two keys: the first one signs, all are accepted.
    """
    given = given or os.environ.get("QNB_KEY")
    if given:
        keys = _keys_in(given)
        if not keys or min(map(len, keys)) < 16:
            raise ConfigurationError("the key is shorter than 16 characters: `qnb key` prints a good one")
        return b"\n".join(keys)
    refused: OSError | None = None
    for path in _key_files():
        try:
            if not path.exists():
                _make_key(path)
            return read_key_file(path)
        except OSError as error:
            refused = error
    raise ConfigurationError(
        f"no place for the key file ({refused}): set QNB_KEY to the output of `qnb key`"
    ) from refused


# What a task has no business with, and its children still less.
_INLINE = "module://matplotlib_inline.backend_inline"
_PRIVATE = ("QNB_KEY", "QNB_BROKER", "QNB_BACKEND")


def lane_environment() -> dict[str, str]:
    """A lane's environment. glibc is told to keep the memory of large values: half of their cost is getting it anew.
    Figures are shown as in a notebook, unless MPLBACKEND says otherwise."""
    keep = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    figures = {"MPLBACKEND": _INLINE} if find_spec("matplotlib_inline") else {}
    return {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456", **figures, **keep}


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child, with `extra` set; how secrets get to a worker without a command line."""
    return {**os.environ, **extra}
