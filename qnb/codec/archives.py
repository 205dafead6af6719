"""Modules that are shipped: packed from their files in a session, put into a folder and imported from it in a lane.

An archive is a zip named by its content's hash. What functions need is what the files say when they are submitted; a
lane that gets another version of the same archive imports the modules anew, and those of before come back with the
functions that need them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from qnb.codec.code import Archive
from qnb.codec.pickling import ship_by_reference, ship_module
from qnb.errors import CannotUnpickle, ConfigurationError

MOST_BYTES = 64 * 2**20  # of files in an archive
KEPT_SECONDS = 7 * 86400.0
_ROW_SECONDS = 0.0001  # between submits that nothing can have come between, not even the writing of a file
_BUDGET = 4  # in a row of submits, files are looked at so rarely that looking takes a fifth of the time
_SKIPPED = ("__pycache__", "node_modules", "venv")
_DATE = (1980, 1, 1, 0, 0, 0)
_HASH_DIGITS = 32

Signature = tuple[tuple[str, int, int, int], ...]


class Shipment:
    """What one call of `ship` is about: a file or a folder, and how its files are called in the archive."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.root = root
        self.prefix = prefix  # what names in the archive begin with; "" for a folder of modules
        self.signature: Signature = ()
        self.archive: Archive | None = None
        self.put_at = 0.0

    @property
    def name(self) -> str:
        """What it is called on screen."""
        return self.root.name

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """All files that belong to it, in order."""
        if self.root.is_file():
            return [(self.root, self.root.stat())]
        found: list[tuple[Path, os.stat_result]] = []
        waiting = [self.root]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _SKIPPED or entry.name.endswith(".pyc"):
                        continue
                    if entry.is_dir():
                        waiting.append(Path(entry.path))
                    elif entry.is_file():
                        found.append((Path(entry.path), entry.stat()))
        return sorted(found)

    def modules(self) -> set[str]:
        """Names of the top-level modules in it."""
        if self.prefix or self.root.is_file():
            return {self.root.stem if self.root.is_file() else self.root.name}
        return _modules_in(self.root)

    def pack(self, files: Sequence[tuple[Path, os.stat_result]]) -> bytes:
        """The zip of these files: the same bytes for the same content."""
        size = sum(status.st_size for _, status in files)
        if size > MOST_BYTES:
            largest = max(files, key=lambda pair: pair[1].st_size)
            raise ConfigurationError(
                f"{self.root} has {size:,} bytes in {len(files):,} files ({largest[0].name} alone has "
                f"{largest[1].st_size:,}), and {MOST_BYTES:,} at most are shipped: ship the folder of the modules "
                "alone, and put data where workers can read it"
            )
        import zipfile  # most sessions and lanes never meet an archive

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, _ in files:
                inside = self.prefix + (path.name if self.root.is_file() else path.relative_to(self.root).as_posix())
                archive.writestr(zipfile.ZipInfo(inside, _DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


class Shipments:
    """What a session ships. `put` stores an archive as a blob, and again when `put_seconds` are over, for blobs expire;
    None: it travels with each function.

    `at_home`: workers are threads of this process, so that its own modules are theirs: they are imported anew here.
    """

    def __init__(
        self, put: Callable[[str, bytes], None] | None, put_seconds: float = 0.0, *, at_home: bool = False
    ) -> None:
        self._put = put
        self._put_seconds = put_seconds
        self._at_home = at_home
        self._all: dict[Path, Shipment] = {}
        self._archives: tuple[Archive, ...] = ()
        self._asked = self._next_look = 0.0
        self._lock = threading.Lock()

    def add(self, target: Any) -> None:
        """Ship a module, a package, the name of one, a folder or a .py file. ConfigurationError says why not."""
        if isinstance(target, ModuleType) and not _has_source(target):
            ship_module(target)  # made in the notebook: there is no file, so that it travels by value
            return
        root, prefix = _find(target)
        with self._lock:
            shipment = self._all.setdefault(root, Shipment(root, prefix))
            if self._at_home and not prefix and root.is_dir() and str(root) not in sys.path:
                sys.path.insert(0, str(root))
            ship_by_reference(shipment.modules())
            try:
                self._look()
            except BaseException:
                del self._all[root]
                raise

    def current(self, look: bool = False) -> tuple[Archive, ...]:
        """What every function needs now; the same object as before while no file has changed. `look`: at the files,
        however short ago they were looked at."""
        if self._all:
            now = time.monotonic()
            in_a_row = now - self._asked < _ROW_SECONDS
            self._asked = now
            if look or not in_a_row or now >= self._next_look:
                with self._lock:
                    self._look()
        return self._archives

    def _look(self) -> None:
        begun = time.monotonic()
        changed, spent = False, 0.0
        for shipment in self._all.values():
            started = time.monotonic()
            files = shipment.files()
            spent += time.monotonic() - started
            signature = tuple((str(path), s.st_mtime_ns, s.st_size, s.st_ino) for path, s in files)
            old = self._put is not None and begun - shipment.put_at > self._put_seconds
            if signature != shipment.signature or old:
                changed = self._renew(shipment, files) or changed
                shipment.signature, shipment.put_at = signature, begun
        archives = [shipment.archive for shipment in self._all.values() if shipment.archive is not None]
        if changed or len(archives) != len(self._archives):
            self._archives = tuple(archives)
        self._next_look = time.monotonic() + _BUDGET * spent

    def _renew(self, shipment: Shipment, files: list[tuple[Path, os.stat_result]]) -> bool:
        """Pack it; whether it is another than before."""
        data = shipment.pack(files)
        digest = hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]
        if self._put is not None:
            self._put(digest, data)
        before, shipment.archive = shipment.archive, Archive(shipment.name, digest, None if self._put else data)
        _made_here.add(digest)
        if before is None or before.hash == digest:
            return before is None
        ship_by_reference(shipment.modules())
        if self._at_home:
            _import_anew(shipment.modules())
        return True


def _modules_in(folder: Path) -> set[str]:
    """Names of the modules that one may import with this folder on sys.path."""
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(".py")
            for entry in entries
            if entry.name.endswith(".py") or (entry.is_dir() and os.path.exists(f"{entry.path}/__init__.py"))
        }


def _has_source(module: ModuleType) -> bool:
    if getattr(module, "__file__", None) is None:
        return bool(list(getattr(module, "__path__", ())))
    return str(module.__file__).endswith(".py") or hasattr(module, "__path__")


def _find(target: Any) -> tuple[Path, str]:
    """The file or folder, and what its names in the archive begin with."""
    if isinstance(target, ModuleType):
        return _of_module(target.__name__, target)
    path = Path(target) if isinstance(target, (str, os.PathLike)) else None
    if path is None:
        raise ConfigurationError(
            f"ship({type(target).__name__}): give a module, its name, a folder of modules or a .py file"
        )
    if path.is_dir() and not _is_module_name(target):
        root = path.resolve()
        return root, f"{root.name}/" if (root / "__init__.py").exists() else ""
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigurationError(f"ship({str(target)!r}): there is no such file in {Path.cwd()}")
        return path.resolve(), ""
    return _of_module(str(target), sys.modules.get(str(target)))


def _is_module_name(target: Any) -> bool:
    """Whether a text that is also a folder is a module with code of its own, as `import` would find it."""
    if not isinstance(target, str) or not target.isidentifier():
        return False
    spec = importlib.util.find_spec(target)
    return spec is not None and spec.origin is not None


def _of_module(name: str, module: ModuleType | None) -> tuple[Path, str]:
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__, or a module made by hand
        spec = None
    if spec is None and (module is None or "." in name):
        raise ConfigurationError(
            f"ship({name!r}): there is no module, folder or file of this name here: give its path, or add its folder "
            "to sys.path"
        )
    origin = (spec.origin if spec is not None else None) or getattr(module, "__file__", None)
    places = getattr(spec, "submodule_search_locations", None) or getattr(module, "__path__", None)
    if places:
        root = Path(next(iter(places))).resolve()
        return root, f"{root.name}/"
    if origin is None or not origin.endswith(".py"):
        raise ConfigurationError(f"ship({name!r}): it has no Python source here ({origin}): install it on the workers")
    return Path(origin).resolve(), ""


def _import_anew(modules: set[str]) -> None:
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        module = sys.modules.get(name)
        if module is not None and (spec := module.__spec__) is not None:
            if spec.cached is not None:  # which is told from a newer one by whole seconds alone
                Path(spec.cached).unlink(missing_ok=True)
            importlib.reload(module)


# Where functions run --------------------------------------------------------------------------------------------

_made_here: set[str] = set()  # archives of sessions of this process, whose modules are here already
_lock = threading.Lock()
_active: tuple[str, ...] = ()
_stored: dict[str, dict[str, ModuleType]] = {}  # modules of archives that are not active, by hash
_hidden: dict[str, dict[str, ModuleType]] = {}  # installed modules that those of an archive stand for, by its hash


def folder() -> Path:
    """Where archives are unpacked: of this user alone, shared by all workers and lanes on this machine."""
    import tempfile

    path = Path(tempfile.gettempdir()) / f"qnb-shipped-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CannotUnpickle(f"{path} belongs to somebody else, or others may write there: remove it, or set TMPDIR")
    return path


def is_here(archive: Archive) -> bool:
    """Whether it is unpacked on this machine."""
    return archive.hash in _made_here or (folder() / archive.hash).is_dir()


def unpack_archive(archive: Archive, data: bytes) -> None:
    """Put its files where lanes look for them. Nobody sees half of it, and two may do it at once."""
    import tempfile
    import zipfile

    place = folder()
    draft = Path(tempfile.mkdtemp(dir=place, prefix="draft-"))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as content:
            if sum(info.file_size for info in content.infolist()) > MOST_BYTES:
                raise CannotUnpickle(f"the modules shipped as {archive.name} have over {MOST_BYTES:,} bytes: refused")
            content.extractall(draft)
    except BaseException as error:
        _remove(draft)
        if isinstance(error, (OSError, zipfile.BadZipFile)):
            what = f"the modules shipped as {archive.name}"
            raise CannotUnpickle(f"{what} cannot be unpacked in {place}: {error}") from error
        raise
    try:
        draft.rename(place / archive.hash)
    except OSError:  # somebody was first
        _remove(draft)
    oldest = time.time() - KEPT_SECONDS
    for entry in place.iterdir():
        with contextlib.suppress(OSError):  # another lane may be doing the same
            if entry.stat().st_mtime < oldest:
                _remove(entry)


def active() -> tuple[str, ...]:
    """What `activate` was asked for last, by hash."""
    return _active


def activate(archives: Sequence[Archive], at_home: Container[str] = _made_here) -> None:
    """From now on `import` finds these, and no others that were shipped. `at_home`: hashes of those whose modules are
    this process's own."""
    global _active
    wanted = tuple(archive.hash for archive in archives if archive.hash not in at_home)
    if wanted == _active:
        return
    with _lock:
        place = str(folder())
        for old in [old for old in _active if old not in wanted]:
            _put_away(f"{place}/{old}", old)
        for archive in archives:
            if archive.hash in wanted and archive.hash not in _active:
                _bring(archive, Path(place) / archive.hash)
        _active = wanted
        importlib.invalidate_caches()


def _put_away(path: str, digest: str) -> None:
    names = [name for name, module in sys.modules.items() if _lies_in(module, path)]
    _stored[digest] = {name: sys.modules.pop(name) for name in names}
    sys.modules.update(_hidden.pop(digest, {}))
    if path in sys.path:
        sys.path.remove(path)


def _lies_in(module: Any, path: str) -> bool:
    places = [getattr(module, "__file__", None), *map(str, getattr(module, "__path__", ()) or ())]
    return any(isinstance(place, str) and place.startswith(path + "/") for place in places)


def _bring(archive: Archive, path: Path) -> None:
    if not path.is_dir():
        if archive.data is None:
            raise CannotUnpickle(f"the modules shipped as {archive.name} are no longer in {path}: submit it again")
        unpack_archive(archive, archive.data)
    with contextlib.suppress(OSError):
        os.utime(path)  # used, and so kept
    tops = _modules_in(path)
    hidden = [name for name in sys.modules if name.partition(".")[0] in tops]
    _hidden[archive.hash] = {name: sys.modules.pop(name) for name in hidden}
    sys.modules.update(_stored.pop(archive.hash, {}))
    sys.path.insert(0, str(path))


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
