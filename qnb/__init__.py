"""qnb: any function of a notebook as a remote task, over whichever broker you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qnb.codec.kept import Kept as Kept
    from qnb.errors import (
        AccessDenied as AccessDenied,
    )
    from qnb.errors import (
        BackendUnavailable as BackendUnavailable,
    )
    from qnb.errors import (
        BrokerUnavailable as BrokerUnavailable,
    )
    from qnb.errors import (
        CannotPickle as CannotPickle,
    )
    from qnb.errors import (
        CannotUnpickle as CannotUnpickle,
    )
    from qnb.errors import (
        ConfigurationError as ConfigurationError,
    )
    from qnb.errors import (
        DependencyCancelled as DependencyCancelled,
    )
    from qnb.errors import (
        DependencyFailed as DependencyFailed,
    )
    from qnb.errors import (
        MissingLibrary as MissingLibrary,
    )
    from qnb.errors import (
        OtherVersions as OtherVersions,
    )
    from qnb.errors import (
        PayloadTooLarge as PayloadTooLarge,
    )
    from qnb.errors import (
        QnbError as QnbError,
    )
    from qnb.errors import (
        Refused as Refused,
    )
    from qnb.errors import (
        RemoteError as RemoteError,
    )
    from qnb.errors import (
        ResultsNotKept as ResultsNotKept,
    )
    from qnb.errors import (
        SoftTimeout as SoftTimeout,
    )
    from qnb.errors import (
        TaskExpired as TaskExpired,
    )
    from qnb.errors import (
        TaskLost as TaskLost,
    )
    from qnb.errors import (
        TaskTimeout as TaskTimeout,
    )
    from qnb.errors import (
        UnknownScheme as UnknownScheme,
    )
    from qnb.errors import (
        UnknownTask as UnknownTask,
    )
    from qnb.errors import (
        Unsupported as Unsupported,
    )
    from qnb.monitor.brokers import brokers as brokers
    from qnb.notebook.terminal import show as show
    from qnb.session.batch import Batch as Batch
    from qnb.session.canvas import chain as chain
    from qnb.session.canvas import chord as chord
    from qnb.session.canvas import group as group
    from qnb.session.future import Future as Future
    from qnb.session.session import Session as Session
    from qnb.session.session import current_session as current_session
    from qnb.session.task import Task as Task
    from qnb.worker.inside import Current as Current
    from qnb.worker.inside import current as current
    from qnb.worker.inside import progress as progress
    from qnb.worker.inside import track as track

# Name → module. Nothing is imported before it is asked for: `import qnb` takes a few milliseconds.
_PUBLIC = {
    "Session": "qnb.session.session",
    "current_session": "qnb.session.session",
    "Batch": "qnb.session.batch",
    "Future": "qnb.session.future",
    "Kept": "qnb.codec.kept",
    "Task": "qnb.session.task",
    **dict.fromkeys(("chain", "chord", "group"), "qnb.session.canvas"),
    "brokers": "qnb.monitor.brokers",
    "show": "qnb.notebook.terminal",
    **dict.fromkeys(("Current", "current", "progress", "track"), "qnb.worker.inside"),
    **dict.fromkeys(
        (
            "AccessDenied", "BackendUnavailable", "BrokerUnavailable", "CannotPickle", "CannotUnpickle",
            "ConfigurationError", "DependencyCancelled", "DependencyFailed", "MissingLibrary", "OtherVersions",
            "PayloadTooLarge", "QnbError", "Refused", "RemoteError", "ResultsNotKept", "SoftTimeout",
            "TaskExpired", "TaskLost", "TaskTimeout", "UnknownScheme", "UnknownTask", "Unsupported",
        ),
        "qnb.errors",
    ),
}  # fmt: skip

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'qnb' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext qnb`."""
    from qnb.notebook.extension import load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext qnb`."""
    from qnb.notebook.extension import unload

    unload(ipython)
