"""Every error qnb raises, drawn as a tree. Each message says what happened and what to do about it.

QnbError
├── ConfigurationError          what was asked for cannot be made
│   ├── UnknownScheme             no broker or backend has this URL scheme
│   ├── MissingLibrary            the client library of a broker or backend is not installed
│   └── Unsupported               this broker or backend does not have the feature
├── BrokerError
│   ├── BrokerUnavailable         the server cannot be reached, or went away
│   ├── AccessDenied              the server refused the credentials or the rights
│   ├── PublishFailed             some envelopes were not confirmed; `.failed` has them
│   └── PayloadTooLarge           over the broker's message limit
├── BackendError
│   ├── BackendUnavailable        the server cannot be reached, or went away
│   └── StorageFull               disk full, folder read-only, memory limit of the server
├── MessageError
│   ├── BadSignature              signed with another key, or changed on the way
│   ├── BadMessage                not a message of this version of qnb
│   └── Refused                   a worker started with --only does not run it
├── ShippingError
│   ├── CannotPickle              a function, argument or result cannot be pickled
│   └── CannotUnpickle            it was pickled elsewhere and cannot be opened here
└── TaskError                   what `Future.result()` raises besides the task's own exception
    ├── RemoteError               stands for an exception whose class cannot travel
    ├── TaskTimeout               ran longer than `timeout`; also a TimeoutError
    ├── SoftTimeout               raised inside the task at `soft_timeout`; also a TimeoutError
    ├── TaskLost                  its worker died too often; the reason is in the message
    ├── TaskExpired               not started before `expires`; also a CancelledError
    ├── DependencyFailed          not run, since a call whose value it was to get has failed
    ├── DependencyCancelled       not run, since such a call was cancelled; also a CancelledError
    └── UnknownTask               nobody knows this id

Two are warnings. ResultsNotKept: results travel to the session that asked and are kept nowhere. OtherVersions: a worker
has other versions of what a function imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any


class QnbError(Exception):
    """The root of all errors of qnb."""


class ConfigurationError(QnbError, ValueError):
    """What was asked for cannot be made."""


class UnknownScheme(ConfigurationError):
    """No broker or backend has this URL scheme."""


class MissingLibrary(ConfigurationError, ImportError):
    """The client library of a broker or backend is not installed; the message has the pip line."""


class Unsupported(ConfigurationError):
    """The broker or backend does not have this feature; its `features` say so too."""


class BrokerError(QnbError):
    """Something between here and the broker."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker cannot be reached, or went away."""


class AccessDenied(BrokerError, PermissionError):
    """The server refused the credentials, or they lack a right."""


class PublishFailed(BrokerError):
    """Some envelopes were not confirmed by the server.

    `failed` holds exactly those, in order; the others were published.
    """

    def __init__(self, message: str, failed: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.failed = list(failed)


class PayloadTooLarge(BrokerError, ValueError):
    """A message is over the broker's limit and no blob store can take it."""


class BackendError(QnbError):
    """Something between here and the result backend."""


class BackendUnavailable(BackendError, ConnectionError):
    """The backend cannot be reached, or went away."""


class StorageFull(BackendError, OSError):
    """The disk or memory that should hold tasks or results is full, or may not be written."""


class MessageError(QnbError):
    """A message that is not run, opened or answered."""


class BadSignature(MessageError):
    """Signed with another key, or changed on the way; it was not opened."""


class BadMessage(MessageError):
    """Not a message of this version of qnb; it was not opened."""


class Refused(MessageError):
    """A worker that runs the functions of some modules alone was sent something else; it was not opened."""


class ShippingError(QnbError):
    """A function or value that cannot travel."""


class CannotPickle(ShippingError, TypeError):
    """A function, argument or result cannot be pickled; the message names the part at fault."""


class CannotUnpickle(ShippingError):
    """It was pickled elsewhere and cannot be opened here, mostly for want of a module."""


class TaskError(QnbError):
    """A task ended otherwise than by its own return or exception."""


class RemoteError(TaskError):
    """Stands for an exception raised in a task whose own class cannot be pickled.

    `type_name` is its qualified name; `remote_traceback` the text of its traceback.
    """

    def __init__(self, message: str, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback


class TaskTimeout(TaskError, TimeoutError):
    """The task ran longer than its `timeout` and its lane was killed."""


class SoftTimeout(TaskError, TimeoutError):
    """Raised inside a task that runs longer than its `soft_timeout`; it may catch it and tidy up."""


class TaskLost(TaskError):
    """The process that ran the task died, as often as `max_deliveries` allows."""


class TaskExpired(TaskError, CancelledError):
    """The task had not started when `expires` was over; it was never run."""


class DependencyFailed(TaskError):
    """Not run, since a call whose value it was to get has failed; `__cause__` is that call's exception.

    Of a chain, the message names every call and the cause is the first one's.
    """


class DependencyCancelled(TaskError, CancelledError):
    """Not run, since a call whose value it was to get was cancelled."""


class UnknownTask(TaskError, KeyError):
    """Nobody knows a task of this id: never submitted, forgotten, or expired."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ResultsNotKept(UserWarning):
    """Results travel to the session that asked, and are kept nowhere else."""


class OtherVersions(UserWarning):
    """A worker has another Python, or other versions of what a function imports, than where it comes from."""
