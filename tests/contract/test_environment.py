"""What a function imports, in which versions: told once when a worker has others. And edits that are shipped anew."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.codec import environment
from qnb.codec.code import read
from qnb.codec.functions import pack
from tests.contract.conftest import ROOT, new_place, own_worker
from tests.services import Services

BROKERS = ("sqlite", "redis", "amqp")
SECONDS = 20.0
# A worker that says to have other versions of some distributions than are installed.
WORKER = """
import sys
from importlib import metadata
from qnb.cli import main
sys.exit(main(["worker", sys.argv[1], "--concurrency", "2", "--pool", "thread", "--name", "elsewhere"]))
"""
SITE = """
import importlib.metadata as metadata
_version = metadata.version
def version(name):
    if name == "msgspec":
        return "0.0.1"
    if name == "cloudpickle":
        raise metadata.PackageNotFoundError(name)
    return _version(name)
metadata.version = version
"""


def make(text: str) -> Callable[..., Any]:
    """A function of the notebook."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "cell", "exec"), namespace)
    return namespace["f"]  # type: ignore[no-any-return]


def packages(function: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    return {module: (name, version) for module, name, version in read(pack(function).code or b"").packages}


def test_what_is_found() -> None:
    version = importlib.metadata.version
    text = "import numpy as np\nfrom pandas import DataFrame\nframe = DataFrame()\n"
    assert packages(make(f"{text}def f():\n    return np.zeros(3)\n")) == {"numpy": ("numpy", version("numpy"))}
    assert set(packages(make(f"{text}def f():\n    return frame\n"))) == {"pandas"}
    assert set(packages(make(f"{text}def f():\n    return DataFrame\n"))) == {"pandas"}
    inside = "def f():\n    import os.path, numpy.linalg\n    return [lambda: __import__('x')]\n"
    assert set(packages(make(inside))) == {"numpy"}
    nested = "def f():\n    def g():\n        from msgspec import json\n        return json\n    return g\n"
    assert set(packages(make(nested))) == {"msgspec"}
    helper = "import msgspec\ndef helper():\n    return msgspec\nclass K:\n    def m(self):\n        import pandas\n"
    assert set(packages(make(f"{helper}def f():\n    return helper(), K\n"))) == {"msgspec", "pandas"}
    assert packages(make("import os\ndef f():\n    import json, nonesuch\n    return os\n")) == {}
    assert packages(make("def f():\n    import dateutil\n"))["dateutil"][0] == "python-dateutil", "by its distribution"


def test_nothing_is_imported_for_it() -> None:
    code = "import qnb, sys\nqnb.Session\nassert 'importlib.metadata' not in sys.modules, 'at import'\n"
    code += "from qnb.codec.functions import pack\n"
    code += "before = 'importlib.metadata' in sys.modules\npack(lambda x: x)\n"
    code += "assert ('importlib.metadata' in sys.modules) == before, 'for a function that needs nothing'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.fixture(scope="module")
def elsewhere(kind: str, services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qnb.Session]:
    """A session whose worker has other versions of msgspec, and no cloudpickle that it knows of."""
    place, folder = new_place(kind, services), tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(SITE)
    command = [sys.executable, "-c", WORKER, place]
    with (
        qnb.Session(place, workers=0) as session,
        own_worker(session, command, [str(folder)], stderr=subprocess.DEVNULL),
    ):
        yield session


def test_a_difference_is_told_once(elsewhere: qnb.Session) -> None:
    f = make("import msgspec, cloudpickle\ndef f(x):\n    return (x, bool(msgspec), bool(cloudpickle))\n")
    here = importlib.metadata.version
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert elsewhere.submit(f, 1).result(SECONDS) == (1, True, True)
        for _ in range(5):
            elsewhere.submit(f, 1).result(SECONDS)
        elsewhere.map(f, range(20), chunksize=1).results(SECONDS)
    [warning] = [w for w in told if w.category is qnb.OtherVersions]
    text = str(warning.message)
    assert f"msgspec {here('msgspec')} here and 0.0.1 there" in text
    assert f"cloudpickle {here('cloudpickle')} here and none there" in text
    assert "worker elsewhere" in text
    other = make("import msgspec\ndef f():\n    return msgspec.__name__\n")
    with pytest.warns(qnb.OtherVersions, match="msgspec"):
        elsewhere.submit(other).result(SECONDS)


def test_no_difference_is_not_told(session: qnb.Session) -> None:
    f = make("import msgspec\ndef f():\n    return bool(msgspec)\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert session.submit(f).result(SECONDS)
    assert not [w for w in told if w.category is qnb.OtherVersions]


def test_as_an_error_it_loses_nothing(elsewhere: qnb.Session, caplog: pytest.LogCaptureFixture) -> None:
    f = make("import msgspec\ndef f():\n    return msgspec.__name__, 'there'\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert elsewhere.submit(f).result(SECONDS) == ("msgspec", "there")
    assert "msgspec" in caplog.text


def test_a_missing_module_names_the_pip_line(
    session: qnb.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the distribution and version that the notebook has."""
    name = f"only_here_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text("def g():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = environment._distribution
    monkeypatch.setattr(environment, "_distribution", lambda m: ("only-here", "1.2") if m == name else found(m))
    __import__(name)
    by_global = make(f"from {name} import g\ndef f():\n    return g()\n")
    with pytest.raises(qnb.CannotUnpickle, match=rf"no module '{name}'.*pip install only-here==1\.2.*session\.ship"):
        session.submit(by_global).result(SECONDS)
    inside = make(f"def f():\n    import {name}\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        session.submit(inside).result(SECONDS)
    assert any("pip install only-here==1.2" in note for note in caught.value.__notes__)


# Edits ----------------------------------------------------------------------------------------------------------


def test_edits_are_shipped_anew(session: qnb.Session) -> None:
    """Of the function, of a helper, of a helper's helper, and of a class with its methods."""
    namespace: dict[str, Any] = {"__name__": "__main__"}

    def cell(text: str) -> None:
        exec(compile(text, "cell", "exec"), namespace)

    cell("def deep():\n    return 'deep'\ndef helper():\n    return deep()\n")
    cell("class K:\n    def m(self):\n        return 'm'\n")
    cell("def f():\n    return (helper(), K().m(), 1)\n")
    f = namespace["f"]

    def run() -> Any:
        found = session.submit(f).result(SECONDS)
        assert session.map(lambda _: f(), [0]).results(SECONDS) == [found]
        return found

    assert run() == ("deep", "m", 1)
    cell("def deep():\n    return 'deeper'\n")
    assert run() == ("deeper", "m", 1)
    cell("class K:\n    def m(self):\n        return 'n'\n")
    assert run() == ("deeper", "n", 1)
    namespace["K"].m = lambda self: "patched"
    assert run() == ("deeper", "patched", 1)
    cell("def helper():\n    return 'changed'\n")
    assert run() == ("changed", "patched", 1)
    cell("def f():\n    return 2\n")
    f.__code__ = namespace["f"].__code__
    assert run() == 2


def test_a_key_holds_across_sessions(session: qnb.Session, place: str, tmp_path: Path) -> None:
    if not session.backend.blobs:
        with pytest.raises(qnb.Unsupported, match="key="):
            session.task(key="k")(abs).submit(-1)
        return
    path = str(tmp_path / "ran")

    def once(x: int) -> int:
        with open(path, "a") as file:
            file.write("x")
        return x

    key = f"key {tmp_path}"
    assert session.task(key=key)(once).submit(1).result(SECONDS) == 1
    with qnb.Session(place, workers=0) as other:
        assert other.task(key=key)(once).submit(2).result(SECONDS) == 1, "the first one's outcome"
    assert Path(path).read_text() == "x"
