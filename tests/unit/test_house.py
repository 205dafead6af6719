"""The house rules: what may import what, what `import qnb` loads, and that all that is public is there."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qnb
from qnb import registry
from qnb.errors import UnknownScheme

ROOT = Path(qnb.__file__).parent
FILES = {
    ".".join(("qnb", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# Lower floors first; a module may import its own floor and those below it.
FLOORS = [
    {"qnb.errors", "qnb.features", "qnb.message", "qnb.settings", "qnb"},
    {"qnb.brokers"},
    {"qnb.backends", "qnb.codec", "qnb.registry"},
    {"qnb.monitor"},
    {"qnb.session", "qnb.worker"},
    {"qnb.notebook", "qnb.cli", "qnb.pandas", "qnb.joblib"},
]
# Found justified: (importing module, imported module).
EXCEPTIONS = {
    # A memory: broker can only be served from its own process, so the session starts that worker itself.
    ("qnb.session.local", "qnb.worker.loop"),
    # How things are displayed; loaded when they are displayed, and the text fallback needs no IPython.
    ("qnb.session.batch", "qnb.notebook.fallback"),
    ("qnb.session.batch", "qnb.notebook.batch_view"),
    ("qnb.session.batch", "qnb.notebook.terminal"),
    ("qnb.session.session", "qnb.notebook.session_view"),
    ("qnb.monitor.control", "qnb.notebook.workers_view"),
    ("qnb.monitor.events", "qnb.notebook.events_view"),
    ("qnb.monitor.brokers", "qnb.notebook.brokers_view"),
    # The package bears the name of a public function, and stands in for it.
    ("qnb.brokers", "qnb.monitor.brokers"),
    # `%load_ext qnb` and the names of the package, which are loaded when they are asked for.
    ("qnb", "qnb.notebook.extension"),
}
CLIENTS = {
    "redis",
    "hiredis",
    "pika",
    "boto3",
    "botocore",
    "confluent_kafka",
    "kazoo",
    "google",
    "cassandra",
    "sqlalchemy",
    "sqlite3",
}
DISPLAY = {"IPython", "ipywidgets", "anywidget", "traitlets", "ipykernel"}


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@functools.cache
def imports(module: str) -> list[tuple[str, bool]]:
    """(imported module, only for the type checker) of a file, wherever in it the import stands."""
    tree = parsed(module)
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(n if n in FILES else str(node.module), id(node) in typing_only) for n in names]
    return found


def floor(module: str) -> int:
    room = module if module in FLOORS[0] else ".".join(module.split(".")[:2])
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_downward(module: str) -> None:
    room = module.split(".")[1:2]
    for other, typing_only in imports(module):
        if not other.startswith("qnb") or typing_only or (module, other) in EXCEPTIONS or module == "qnb":
            continue
        assert floor(other) <= floor(module), f"{module} imports {other}, which is above it"
        if {*room, *other.split(".")[1:2]} == {"session", "worker"}:
            pytest.fail(f"{module} imports {other}: session and worker stand beside each other")


def test_the_exceptions_are_needed() -> None:
    """Each still stands for an import that is there."""
    for module, other in EXCEPTIONS:
        assert other in {name for name, _ in imports(module)}, f"{module} no longer imports {other}: no exception"


@pytest.mark.parametrize("module", sorted(FILES))
def test_where_libraries_are_imported(module: str) -> None:
    room = ".".join(module.split(".")[:2])
    for other, typing_only in imports(module):
        top = other.split(".")[0]
        if typing_only:
            continue
        if top in CLIENTS:
            assert room in ("qnb.brokers", "qnb.backends"), f"{module}: {top} is imported in its adapter alone"
        if top in DISPLAY:
            assert room == "qnb.notebook", f"{module}: {top} is imported in notebook/ alone"
        if top in ("pickle", "cloudpickle"):
            assert room == "qnb.codec", f"{module}: {top} is imported in codec/ alone"


def test_a_client_library_is_imported_for_its_own_broker() -> None:
    for module in FILES:
        for other, _ in imports(module):
            if other.split(".")[0] in ("redis", "hiredis"):
                assert "redis" in module, module


@pytest.mark.parametrize("module", sorted(set(FILES) - {"qnb.settings"}))
def test_the_environment_is_read_in_settings(module: str) -> None:
    tree = parsed(module)
    read = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os"
    ]
    assert not read, f"{module} reads os.environ"


# import qnb -----------------------------------------------------------------------------------------------------

HEAVY = [
    "pandas",
    "numpy",
    "redis",
    "hiredis",
    "sqlalchemy",
    "IPython",
    "ipywidgets",
    "anywidget",
    "cloudpickle",
    "asyncio",
]


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, check=True, cwd=ROOT.parent,
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy() -> None:
    modules = loaded("import qnb")
    assert not modules & set(HEAVY)
    assert {name for name in modules if name.startswith("qnb")} == {"qnb"}


def test_the_session_loads_no_client_library() -> None:
    assert not loaded("import qnb; qnb.Session; qnb.Batch; qnb.Future") & {*HEAVY[:8]} - {"numpy"}


@pytest.mark.parametrize("code", ["import qnb; qnb.Session; qnb.Batch; qnb.Future", "import qnb.worker.lane"])
def test_what_few_need_is_loaded_for_them_alone(code: str) -> None:
    """It would take as long as all the rest."""
    assert not loaded(code) & {"asyncio", "difflib", "ssl", "subprocess", "tempfile", "zipfile"}


def test_help_loads_no_client_library() -> None:
    code = "from qnb.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded(code) & {*HEAVY, "msgspec"}


def test_public_names() -> None:
    for name in qnb.__all__:
        assert getattr(qnb, name) is not None
        assert name in dir(qnb)
    with pytest.raises(AttributeError, match="nonesuch"):
        qnb.nonesuch  # noqa: B018
    for name in ("CannotPickle", "TaskLost", "BrokerUnavailable", "UnknownScheme", "SoftTimeout"):
        assert issubclass(getattr(qnb, name), qnb.QnbError)


def test_typed() -> None:
    assert (ROOT / "py.typed").exists()


# Registry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed, meant", [("reddis", "redis"), ("redsi", "redis"), ("sqlit", "sqlite"), ("pyampq", "pyamqp")]
)
def test_did_you_mean(typed: str, meant: str) -> None:
    with pytest.raises(UnknownScheme, match=f"did you mean {meant}"):
        registry.find("broker", f"{typed}://host")


def test_no_wild_guess() -> None:
    with pytest.raises(UnknownScheme) as caught:
        registry.find("broker", "xyzzy://host")
    assert "did you mean" not in str(caught.value)


def test_what_is_registered_is_what_is_packaged() -> None:
    """The tables here and the entry points of pyproject.toml say the same, and every class is there."""
    import tomllib

    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["qnb.brokers"] == registry.BROKERS
    assert project["entry-points"]["qnb.backends"] == registry.BACKENDS
    assert set(registry.EXTRAS.values()) <= set(project["optional-dependencies"])
    for kind, table in (("broker", registry.BROKERS), ("backend", registry.BACKENDS)):
        for scheme in table:
            assert registry.find(kind, f"{scheme}://x").__name__.endswith(kind.title())


def test_what_is_shown_is_what_is_claimed() -> None:
    """conformance.json is written by a run of the suite: since then no broker has come, or claims anything else."""
    from qnb.monitor.brokers import conformance, features_of

    classes = {registry.find("broker", f"{scheme}:") for scheme in registry.BROKERS}
    shown = {registry.find("broker", f"{scheme}:"): features_of(scheme) for scheme in conformance()}
    assert set(shown) == classes, "run python -m tests.conformance.table"
    for adapter, features in shown.items():
        assert features == adapter.features, f"{adapter.scheme}: run python -m tests.conformance.table"
