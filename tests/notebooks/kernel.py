"""A real ipykernel, spoken to as a front end does."""

from __future__ import annotations

import array
import contextlib
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"
Message = dict[str, Any]


@dataclass
class Kernel:
    """Everything the kernel published is in `heard`, in order."""

    manager: Any
    client: Any
    heard: list[Message] = field(default_factory=list)

    def run(self, code: str, seconds: float = 30) -> list[Message]:
        """Run a cell to its end; what was published meanwhile. An error in it is raised here."""
        begun = len(self.heard)
        self.ended(self.client.execute(code), seconds)
        for message in self.heard[begun:]:
            if message["msg_type"] == "error":
                raise AssertionError("\n".join(message["content"]["traceback"]))
        return self.heard[begun:]

    def request(self, code: str, cell: str) -> str:
        """Send a cell, as a front end does that tells which one it is; the id of its message."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell})
        self.client.shell_channel.send(message)
        identity: str = message["header"]["msg_id"]
        return identity

    def ended(self, request: str, seconds: float = 30) -> None:
        """Listen until the cell of that message has ended."""
        self.until(lambda m: m["msg_type"] == "status" and _ends(m, request), seconds)

    def value(self, expression: str) -> Any:
        """An expression's value, of plain Python."""
        text = [m["content"]["text"] for m in self.run(f"print(repr({expression}))") if m["msg_type"] == "stream"]
        return eval("".join(text), {})

    def until(self, wanted: Callable[[Message], bool], seconds: float = 10) -> Message:
        """Listen until such a message comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                message: Message = self.client.get_iopub_msg(timeout=left)
                self.heard.append(message)
                if wanted(message):
                    return message
        raise AssertionError(f"no such message in {seconds} s; heard {[m['msg_type'] for m in self.heard[-20:]]}")

    def listen(self, seconds: float) -> list[Message]:
        """What is published in these seconds."""
        begun = len(self.heard)
        with contextlib.suppress(AssertionError):
            self.until(lambda _: False, seconds)
        return self.heard[begun:]

    def send(self, comm: str, content: Message) -> None:
        """What a view says to its model."""
        data = {"method": "custom", "content": content}
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        self.client.shell_channel.send(message)

    def widget(self) -> str:
        """The comm of the batch shown last."""
        opened = [m for m in self.heard if m["msg_type"] == "comm_open" and "snapshot" in m["content"]["data"]["state"]]
        comm: str = opened[-1]["content"]["comm_id"]
        return comm

    def ready(self, view: str = "a") -> Message:
        """A view of the batch shown last tells that it is there; the whole state that answers it."""
        self.send(self.widget(), {"kind": "ready", "view": view, "n": 0})
        return self.until(lambda m: bool(self.said("snapshot", [m])))

    def heed(self) -> None:
        """Until the kernel has heard what was said to the batch shown last: it answers in turn."""
        self.send(self.widget(), {"kind": "ask", "id": "0", "what": "nothing", "with": {}})
        self.until(lambda m: any(said["id"] == "0" for said in self.said("answer", [m])))

    def ask(self, what: str, **argument: Any) -> Any:
        """What the batch shown last answers a view; an error is raised here."""
        self.send(self.widget(), {"kind": "ask", "id": "1", "what": what, "with": argument})
        [answer] = self.said("answer", [self.until(lambda m: bool(self.said("answer", [m])))])
        assert answer["ok"], answer["value"]
        return answer["value"]

    def said(self, kind: str | None = None, messages: list[Message] | None = None) -> list[Message]:
        """The contents of the batch widgets' own messages, of one kind or all."""
        found = [m for m in (self.heard if messages is None else messages) if m["msg_type"] == "comm_msg"]
        contents = [m["content"]["data"].get("content") or {} for m in found]
        return [content for content in contents if content and kind in (None, content["kind"])]


def rows(message: Message) -> dict[int, tuple[int, int, float, float]]:
    """Of a message with rows: call number → state, attempts, start and end."""
    part = message["content"]["data"]["content"].get("rows") or {"count": 0}
    if not part["count"]:
        return {}
    buffers = [bytes(buffer) for buffer in message["buffers"]]
    index = array.array("I", buffers.pop(0)) if part["index"] else range(part["count"])
    starts, ends = array.array("d", buffers[3]), array.array("d", buffers[4])
    return dict(zip(index, zip(buffers[0], buffers[1], starts, ends, strict=True), strict=True))


def times(messages: list[Message]) -> list[float]:
    """When they were sent, in seconds."""
    dates = [m["header"]["date"] for m in messages]
    return [date.timestamp() if isinstance(date, datetime) else float(date) for date in dates]


def _ends(message: Message, request: str) -> bool:
    idle: bool = message["content"]["execution_state"] == "idle"
    return idle and message["parent_header"].get("msg_id") == request


@contextlib.contextmanager
def start_kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel in this folder, with qnb and these tests importable."""
    path = [str(ROOT), *(entry for entry in sys.path if entry)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "IPYTHONDIR": str(folder / "ipython")}
    environment["JPY_SESSION_NAME"] = "test.ipynb"  # as a Jupyter server has it: somebody may look
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(folder))
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
