"""Passwords and keys stand in no repr, no message, no traceback and no log line, whatever object one prints.

Every object of qnb that can be reached from a Session, Broker, Backend or Worker is printed; so is every error that an
adapter raises when its server is not there, refuses the login, or the URL is wrong.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest

import qnb
from qnb import registry, settings
from qnb.codec.signing import Signer
from qnb.errors import QnbError
from qnb.worker.loop import Worker, WorkerOptions
from qnb.worker.protocol import Welcome
from tests.servers.base import free_port
from tests.services import Services

PASSWORD = "pl4nted-passw0rd"
KEY = "pl4nted-signing-key-of-this-test"
PLANTED = ("pl4nted", KEY.encode().hex())
LIMIT = 20_000
_LEAVES = (str, bytes, bytearray, int, float, bool, type(None), type, ModuleType)


def reachable(*roots: Any) -> Iterator[Any]:
    """Everything that hangs from these, breadth first, up to LIMIT objects."""
    seen: set[int] = set()
    waiting, at = list(roots), 0
    while at < len(waiting) and at < LIMIT:
        value = waiting[at]
        at += 1
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += parts(value)


def parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        cells = []
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # empty
                cells.append(cell.cell_contents)
        return cells
    if not type(value).__module__.startswith(("qnb", "threading")):
        return []
    found = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [getattr(value, name) for name in names if hasattr(value, name)]
    return found


def shows(text: str) -> bool:
    return any(planted in text for planted in PLANTED)


def shown_by(value: Any) -> list[str]:
    """What gives a secret away when it is printed. Containers are looked into, and only what qnb made is printed."""
    leaks = []
    for found in reachable(value):
        ours = type(found).__module__.startswith("qnb")
        if ours or isinstance(found, (functools.partial, MethodType, FunctionType, BaseException)):
            texts = [repr(found), str(found)]
            html = getattr(found, "_repr_html_", None)
            texts += [html()] if ours and html is not None else []
            if any(map(shows, texts)):
                leaks.append(f"{type(found).__module__}.{type(found).__qualname__}")
    return leaks


def told_by(error: BaseException) -> str:
    """All that is printed of an error, and of those behind it, notes and arguments too."""
    lines = traceback.format_exception(error)
    chain: BaseException | None = error
    while chain is not None:
        lines += [repr(chain), str(chain), repr(chain.args)]
        lines += [repr(vars(chain))] if isinstance(chain, QnbError) else []  # others keep what they like
        chain = chain.__cause__ or chain.__context__
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("QNB_BROKER", "QNB_BACKEND", "QNB_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG, "qnb")


# Where nobody answers -------------------------------------------------------------------------------------------

_QUERY = "?api_token=pl4nted-token&password=pl4nted-option"


@pytest.mark.parametrize("query", ["", _QUERY], ids=["login", "options"])
@pytest.mark.parametrize(
    "kind, scheme",
    [("broker", scheme) for scheme in sorted(registry.BROKERS) if scheme not in ("sqlite", "memory")]
    + [("backend", scheme) for scheme in ("postgresql", "mysql", "cassandra", "redis")],
)
def test_a_server_that_is_not_there(kind: str, scheme: str, query: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{scheme}://user:{PASSWORD}@127.0.0.1:{free_port()}/0{query}"
    if scheme == "redis+socket":
        url = f"redis+socket://user:{PASSWORD}@/no/such/socket{query}"
    opened: Any = None
    try:
        opened = registry.open_broker(url) if kind == "broker" else registry.open_backend(url)
    except QnbError as error:
        told = told_by(error)
        assert not shows(told), told
    else:  # one that connects when it is used
        assert not shown_by(opened)
        opened.close()
    assert not shows(caplog.text)
    assert not shows(settings.redact(url))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@host:not-a-port/0",
        f"redis://user:{PASSWORD}/with-a-slash@host/0",
        f"redis://user:{PASSWORD}#with-a-hash@host/0",
        f"redis://user:{PASSWORD}?with-a-question=mark@host/0",
        f"rdis://user:{PASSWORD}@host/0",
        f"amqp://user:{PASSWORD}@[half/0",
        f"{PASSWORD}",
    ],
)
def test_a_url_that_is_wrong(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QnbError) as caught:
        qnb.Session(url, workers=0)
    assert not shows(told_by(caught.value))
    assert not shows(caplog.text)


def test_a_key_that_is_wrong(tmp_path: Path) -> None:
    short = KEY[:8]
    with pytest.raises(QnbError) as caught:
        qnb.Session("memory://wrong-key", workers=0, key=short)
    assert not shows(told_by(caught.value))
    file = tmp_path / "key"
    file.write_text(short)
    for mode in (0o600, 0o644):
        file.chmod(mode)
        with pytest.raises(QnbError) as caught:
            settings.read_key_file(file)
        assert not shows(told_by(caught.value))


# Where all is well ----------------------------------------------------------------------------------------------


def use(url: str, caplog: pytest.LogCaptureFixture, **options: Any) -> None:
    """A session and a worker at work, printed with all that hangs from them; in success and in failure."""
    with qnb.Session(url, key=KEY, **options) as session:
        batch = session.map(lambda i: 1 // i, [0, 1])
        assert batch.wait(20)
        future = session.submit(abs, -1)
        assert future.result(20) == 1
        failed = batch[0].exception()
        assert failed is not None
        found = shown_by([session, batch, future, failed, session.workers, session.features(), session.control.conf()])
        found += shown_by(list(session.runs().itertuples()))
        assert not found
        assert not shows(told_by(failed))
        assert not shows(repr(session.control.conf()) + repr(session.control.stats()) + repr(session.workers.df))
    assert not shown_by(session)
    assert not shows(caplog.text)


def test_memory(caplog: pytest.LogCaptureFixture, services: Services) -> None:
    use(f"memory://{services.word()}", caplog, workers=1)


def test_embedded(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    use(f"sqlite:///{tmp_path}/x.db", caplog, workers=1)
    log = tmp_path / ".qnb" / "worker.log"
    assert not log.exists() or not shows(log.read_text())


def test_redis(caplog: pytest.LogCaptureFixture, services: Services) -> None:
    server = services.redis(requirepass=PASSWORD)
    use(server.url.replace("://", f"://:{PASSWORD}@"), caplog, workers=1)
    with pytest.raises(QnbError) as caught:
        qnb.Session(server.url.replace("://", f"://:{PASSWORD}-wrong@"), workers=0)
    assert not shows(told_by(caught.value))


def test_a_worker(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    url = f"memory://{services.word()}"
    worker = Worker(registry.open_broker(url), registry.open_backend(url), KEY.encode(), WorkerOptions("w"))
    assert not shown_by(worker)
    worker.start()
    assert not shown_by(worker)
    worker.stop()
    worker.join()
    assert not shown_by([worker, Signer(KEY.encode())])
    assert not shows(repr(Welcome(KEY.encode(), "w")))
    assert not shows(caplog.text)


def test_the_walk_sees_what_there_is_to_see() -> None:
    """A partial in an attribute of an object, as deep as qnb's own are."""
    worker = WorkerOptions("w", queues=[functools.partial(print, PASSWORD)])  # type: ignore[list-item]
    assert shown_by({"deep": [worker]}) == ["qnb.worker.loop.WorkerOptions", "functools.partial"]
