"""What travels: frozen structs, encoded as msgpack arrays. docs/wire.md describes them for other languages.

A run is one map, one sweep or one stream of submits. Its calls are numbered from 0, so a task id is
`run:index` and costs no randomness. A Frame carries a contiguous range of calls, and it is what a broker
delivers, leases and settles; an Outcomes carries the ends of a contiguous range, and it is what a backend stores.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

WIRE_VERSION = 1
# What msgspec raises for bytes that it cannot decode into what was asked for; anybody may send such bytes.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError)
DEFAULT_QUEUE = "qnb"
# How the peers of a Bus are told apart.
WORKER_PREFIX, SESSION_PREFIX = "w.", "s."

# States as they are shown, and one byte each as they travel. The order is that of a task's life.
STATES = ("pending", "queued", "running", "retrying", "done", "failed", "cancelled", "lost")
PENDING, QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, LOST = range(8)


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function by content: `hash` names the version, `code` is its pickle or None when it is in the blob store."""

    hash: bytes
    name: str
    code: bytes | None = None
    is_async: bool = False


class Options(msgspec.Struct, frozen=True, array_like=True):
    """How a call is to be run. Times in seconds; `expires` is Unix time."""

    retries: int = 0
    backoff: float = 1.0
    timeout: float | None = None
    soft_timeout: float | None = None
    priority: int = 0
    expires: float | None = None
    max_deliveries: int = 3
    keep: bool = False


class ValueOf(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """In the place of an argument: the value of call `first` of a run, or the list of those of `count` calls.

    `one`: it is the value itself, and `count` is 1. `name` is what the function of that run is called.
    """

    run: str
    first: int
    count: int = 1
    one: bool = True
    name: str = ""


Key = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]  # of content: it is the name of a file, too
Size = Annotated[int, msgspec.Meta(ge=0)]


class Blob(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """In the place of a value: its pickle, `size` bytes in the blob store under `key`.

    `buffers` has name and size of what the pickle (protocol 5) has left out. `shared`: many calls have the same one.
    """

    key: Key
    size: Size
    buffers: list[tuple[Key, Size]] = []
    shared: bool = False


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Calls `first` … `first + count - 1` of a run, all of one function and with one set of options.

    `args` is encoded by codec.payloads. `attempt` is 1 for a first try. `reply_to` is the peer that wants to
    hear the outcomes. `sent_at` is Unix time. `blob` names the stored payload when `args` is too large to travel.
    `dead` has the reason why these calls are lost: whoever takes the frame rejects it to the dead letters.
    """

    run: str
    first: int
    count: int
    function: Function
    args: bytes
    options: Options = Options()
    reply_to: str = ""
    sent_at: float = 0.0
    attempt: int = 1
    blob: str | None = None
    dead: str | None = None


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """How one call failed. `payload` is the pickled exception, or None when it cannot be pickled.

    `root`: of a call that was not run for want of another's value, how that one failed, or the first of a chain.
    """

    type_name: str
    message: str
    traceback: str = ""
    payload: bytes | None = None
    root: Failure | None = None


class Display(msgspec.Struct, frozen=True, array_like=True):
    """Something rich that a call has shown, a figure or HTML: `data` and `metadata` by MIME type, images as bytes.

    `number` counts the displays of a call from 0; `at` is where it stands in all that the call printed, in
    characters. `id` is its display id, by which a call replaces what it has shown; mostly empty.
    """

    data: dict[str, object]
    metadata: dict[str, object] = {}
    number: int = 0
    at: int = 0
    id: str = ""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[object, object]:
        return self.data, self.metadata


class Outcomes(msgspec.Struct, frozen=True, array_like=True):
    """The ends of calls `first` … `first + count - 1`. Columns, so that a thousand calls cost little more than one.

    `states` has a byte a call (see STATES), or is empty when all are done. `values` is encoded by
    codec.payloads, with None where a call has no value. `failures` is keyed by position in this record.
    `times` holds float64 little-endian Unix times: count starts, then count ends.
    `blob` names the stored values when they are too large to travel. `differs` comes with the first Outcomes of a
    function from a lane: (package, version that the function came from, version there or None).
    """

    run: str
    first: int
    count: int
    states: bytes
    values: bytes
    times: bytes
    worker: str
    queued_at: float = 0.0
    attempt: int = 1
    failures: dict[int, Failure] = {}
    outputs: dict[int, str] = {}
    blob: str | None = None
    differs: list[tuple[str, str, str | None]] = []
    displays: dict[int, list[Display]] = {}


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What has happened to calls that are not over: `state` is RUNNING or RETRYING.

    One that is about a single call may have a piece of what it prints, which stands at `offset` of all of it, its
    progress in `steps`: done, total, note; and what it shows, or has put in the place of what it showed.
    """

    run: str
    indices: list[int]
    state: int
    worker: str
    at: float
    attempt: int = 1
    output: str = ""
    offset: int = 0
    steps: tuple[int | float, int | float | None, str] | None = None
    displays: list[Display] = []


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What a broker is given: a sealed body for a queue.

    `delay` in seconds from now. `priority` 0 … 9, 9 first. `id` is unique for the message, for logs.
    """

    queue: str
    body: bytes
    id: str = ""
    priority: int = 0
    delay: float = 0.0


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What a backend keeps: a sealed Outcomes and the range it is about."""

    run: str
    first: int
    count: int
    data: bytes


class RunRecord(msgspec.Struct, frozen=True):
    """What a backend keeps of a run. `count` is None while a stream of submits is open; `data` is sealed detail."""

    run: str
    kind: str
    name: str
    count: int | None
    created_at: float
    session: str
    data: bytes = b""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """A message over the Bus to peer `to`. `body` is sealed, except for kind "outcomes": already sealed Outcomes.

    Kinds: outcomes, progress, command, reply, event.
    """

    to: str
    kind: str
    body: bytes


class Command(msgspec.Struct, frozen=True, array_like=True):
    """A request to a worker. `id` is echoed in the Reply to `reply_to`."""

    name: str
    arguments: dict[str, object]
    id: str
    reply_to: str


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """A worker's answer to a Command: `error` is set when it could not be done."""

    id: str
    worker: str
    value: object = None
    error: str | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened, told to watchers. `kind` is like "task-done"; `at` is Unix time."""

    kind: str
    at: float
    worker: str
    run: str = ""
    first: int = 0
    count: int = 1
    name: str = ""
    detail: dict[str, object] = {}


def task_id(run: str, index: int) -> str:
    """The id of call `index` of `run`."""
    return f"{run}:{index}"


def split_task_id(task: str) -> tuple[str, int]:
    """The run and index of a task id; ValueError when it is none."""
    run, _, index = task.rpartition(":")
    if not is_task_id(task):
        raise ValueError(f"{task!r} is not a task id; one looks like 'k3f9a2b1-0:17'")
    return run, int(index)


def is_task_id(text: str) -> bool:
    """Whether `split_task_id` takes it."""
    run, _, index = text.rpartition(":")
    return bool(run) and index.isdigit()
