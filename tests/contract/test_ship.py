"""`session.ship`: local modules that workers do not have, as their files are when a call is submitted."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.codec import archives, pickling
from qnb.codec.code import Archive
from qnb.codec.parts import get_sealed

BROKERS = ("memory", "sqlite", "redis", "amqp")
SECONDS = 20.0
_numbers = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    """A module name that was never used in this process or its workers' lanes."""
    name = f"shipped{os.getpid()}_{next(_numbers)}"
    yield name
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        del sys.modules[known]
    pickling._BY_REFERENCE.discard(name)


@pytest.fixture(autouse=True)
def nothing_stays(session: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    session._shipments._all.clear()
    session._shipments._archives = ()


def by_name(name: str, function: str = "f") -> Callable[..., Any]:
    """A function of the notebook that imports a module where it runs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(f"def call(*args):\n    import {name}\n    return {name}.{function}(*args)\n", namespace)
    return namespace["call"]  # type: ignore[no-any-return]


def write(path: Path, text: str) -> None:
    """A file with another time than before, however quick the test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def test_without(session: qnb.Session, name: str) -> None:
    """What the tests below would get if nothing were shipped."""
    with pytest.raises(ModuleNotFoundError, match=name) as caught:
        session.submit(by_name(name)).result(SECONDS)
    assert any(f"pip install {name}" in note for note in caught.value.__notes__)


def test_a_folder(session: qnb.Session, name: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.py", "def f(x):\n    return x + 1\n")
    (tmp_path / "__pycache__").mkdir()
    session.ship(tmp_path)
    assert session.submit(by_name(name), 1).result(SECONDS) == 2
    assert session.map(by_name(name), range(50)).results(SECONDS) == list(range(1, 51))


def test_what_changes_is_shipped_anew(session: qnb.Session, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    call = by_name(name)
    write(path, "def f():\n    return 'before'\n")
    session.ship(str(tmp_path))
    for number in range(5):
        assert session.submit(call).result(SECONDS) == ("before" if number == 0 else number - 1)
        write(path, f"def f():\n    return {number}\n")
    write(tmp_path / f"{name}_more.py", "def g():\n    return 'more'\n")
    assert session.submit(by_name(f"{name}_more", "g")).result(SECONDS) == "more"
    assert session.submit(call).result(SECONDS) == 4


def test_data_beside_it(session: qnb.Session, name: str, tmp_path: Path) -> None:
    reads = "from pathlib import Path\ndef f():\n    return (Path(__file__).parent / 'table.csv').read_text()\n"
    write(tmp_path / f"{name}.py", reads)
    write(tmp_path / "table.csv", "1,2")
    session.ship(tmp_path)
    assert session.submit(by_name(name)).result(SECONDS) == "1,2"
    write(tmp_path / "table.csv", "3,4")
    assert session.submit(by_name(name)).result(SECONDS) == "3,4"


@pytest.mark.parametrize("how", ["folder", "module", "name", "submodule"])
def test_a_package(session: qnb.Session, name: str, tmp_path: Path, how: str) -> None:
    write(tmp_path / name / "__init__.py", "from .inner.deep import f\n")
    write(tmp_path / name / "inner" / "__init__.py", "")
    write(tmp_path / name / "inner" / "deep.py", "class K:\n    v = 7\ndef f():\n    return K.v\n")
    sys.path.insert(0, str(tmp_path))
    module = __import__(name) if how in ("module", "submodule") else None
    shipped = {"folder": tmp_path / name, "module": module, "name": name, "submodule": f"{name}.inner"}[how]
    session.ship(shipped)
    assert session.submit(by_name(name)).result(SECONDS) == 7
    module = __import__(f"{name}.inner.deep", fromlist=["f"])
    assert session.submit(module.f).result(SECONDS) == 7
    assert type(session.submit(module.K).result(SECONDS)) is module.K, "its classes are the same on both sides"


@pytest.mark.parametrize("how", ["file", "module", "name"])
def test_one_module(session: qnb.Session, name: str, tmp_path: Path, how: str) -> None:
    text = "class K:\n    def __init__(self):\n        self.v = scale\ndef f(x):\n    return x * scale\n"
    write(tmp_path / f"{name}.py", f"scale = 2\n{text}")
    write(tmp_path / "other.py", "raise RuntimeError('is not shipped')\n")
    sys.path.insert(0, str(tmp_path))
    module = __import__(name)
    session.ship({"file": f"{tmp_path}/{name}.py", "module": module, "name": name}[how])
    assert session.submit(module.f, 4).result(SECONDS) == 8
    assert session.submit(lambda x: module.f(x), 4).result(SECONDS) == 8
    back = session.submit(lambda value: (value, module.K()), module.K()).result(SECONDS)
    assert [type(value) is module.K for value in back] == [True, True]


def test_the_file_is_what_runs(session: qnb.Session, name: str, tmp_path: Path) -> None:
    """Not what this process imported before; nor a function that it has kept over a reload."""
    write(tmp_path / f"{name}.py", "def f():\n    return 'old'\n")
    sys.path.insert(0, str(tmp_path))
    module = __import__(name)
    kept = module.f
    session.ship(module)
    assert session.submit(kept).result(SECONDS) == "old"
    write(tmp_path / f"{name}.py", "def f():\n    return 'new one'\n")
    assert session.submit(kept).result(SECONDS) == "new one"
    import importlib

    importlib.invalidate_caches()
    importlib.reload(module)
    assert session.submit(kept).result(SECONDS) == "new one"
    assert session.submit(lambda: kept()).result(SECONDS) == "new one"


def test_two_versions_at_once(session: qnb.Session, kind: str, name: str, tmp_path: Path) -> None:
    """Calls of the version before, that run after the next has been used in the same lane, find their own modules."""
    if kind == "memory":
        pytest.skip("its workers are threads of this process, which has one version")
    call = by_name(name)
    write(tmp_path / f"{name}.py", "def f(x):\n    return ('one', x)\n")
    session.ship(tmp_path)
    later = session.task(delay=0.5)(call).map(range(8), chunksize=1)
    write(tmp_path / f"{name}.py", "def f(x):\n    return ('two', x)\n")
    assert session.map(call, range(8), chunksize=1).results(SECONDS) == [("two", i) for i in range(8)]
    assert later.results(SECONDS) == [("one", i) for i in range(8)]
    assert session.map(call, range(8), chunksize=1).results(SECONDS) == [("two", i) for i in range(8)]


def test_it_travels_by_the_blob_store(session: qnb.Session, kind: str, name: str, tmp_path: Path) -> None:
    """Once, and not with each function; where there is none it does, for modest sizes."""
    write(tmp_path / f"{name}.py", "def f():\n    return 1\n")
    (tmp_path / "noise").write_bytes(os.urandom(300_000))
    session.ship(tmp_path)
    shipped = session.ship_function(by_name(name))
    assert session.submit(by_name(name)).result(SECONDS) == 1
    [archive] = session._shipments.current()
    if session.backend.blobs:
        assert len(shipped.code or b"") < 5000
        assert get_sealed(session.backend.get_blob, session.signer, archive.hash) is not None
    else:
        assert len(shipped.code or b"") > 300_000


@pytest.mark.parametrize("seconds, times", [(0.0, 3), (3600.0, 1)])
def test_an_archive_is_put_again_before_it_expires(name: str, tmp_path: Path, seconds: float, times: int) -> None:
    write(tmp_path / f"{name}.py", "def f():\n    return 3\n")
    put: list[str] = []
    shipments = archives.Shipments(lambda digest, data: put.append(digest), seconds)
    shipments.add(tmp_path / f"{name}.py")
    for _ in range(2):
        [archive] = shipments.current(look=True)
    assert put == [archive.hash] * times


def test_too_large(session: qnb.Session, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    write(tmp_path / f"{name}.py", "def f():\n    return 1\n")
    (tmp_path / "model.bin").write_bytes(bytes(2000))
    with pytest.raises(qnb.ConfigurationError, match=r"2,0\d\d bytes in 2 files \(model\.bin alone has 2,000\)"):
        session.ship(tmp_path)
    assert session.submit(abs, -1).result(SECONDS) == 1, "nothing of it stays"


@pytest.mark.parametrize("target", ["no_such_module_here", "no/such/folder", "no_such.py", 7, sys])
def test_what_cannot_be_shipped(session: qnb.Session, target: Any) -> None:
    if target is sys:
        session.ship(sys)  # nothing to ship, and everybody has it
        return
    with pytest.raises(qnb.ConfigurationError, match="ship"):
        session.ship(target)


def test_an_archive_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error, which refuses its calls and ends no worker; and nothing of it stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(qnb.CannotUnpickle, match="shipped as broken cannot be unpacked"):
        archives.unpack_archive(Archive("broken", "0" * 32), b"no zip at all")
    assert list(archives.folder().iterdir()) == []
