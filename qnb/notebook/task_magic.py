"""`%%task`: the cell runs on a worker, and returns at once."""

# mypy: allow-untyped-calls, allow-untyped-decorators
# IPython's decorators have no types.
from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from inspect import CO_COROUTINE
from types import ModuleType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from qnb.codec.variables import pack_variables
from qnb.errors import QnbError
from qnb.notebook.bundles import woven_text
from qnb.notebook.cell_output import MISSING, CellOutput, Job, Waiting
from qnb.notebook.magics import fail_in_one_line, session_here
from qnb.notebook.names import Names, names_of
from qnb.notebook.stage import STAGE
from qnb.notebook.words import count, duration, size
from qnb.session.options import TaskOptions
from qnb.worker.cell import run_async_cell, run_cell

if TYPE_CHECKING:
    from qnb.session.future import Future

TASK = "task"
_LISTED = 6


@magics_class
class TaskMagics(Magics):
    """`%%task`. One instance a shell."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._shell: Any = shell
        self._jobs: dict[str, Job] = {}

    @magic_arguments()
    @argument(
        "-o",
        metavar="NAME,…",
        dest="names",
        action="append",
        help="variables to bring back; by default what the cell assigns at its top level",
    )
    @argument("--retries", metavar="N", type=int, default=0, help="how often it is tried again when it fails")
    @argument("--timeout", metavar="S", type=float, help="seconds after which it is stopped")
    @argument("--name", metavar="N", help="what it is called; also tells which older run a later one replaces")
    @cell_magic
    def task(self, line: str, cell: str) -> None:
        """Run this cell on a worker, and go on at once.

        The variables that the cell uses are sent with it, which is told with their sizes. What it prints and displays
        appears here while it runs, and so does its progress. When it is over, the variables that it assigns (or those
        of -o) are put into the notebook: between two cells, or in the one that waits for `_task`, the Future of the
        newest such cell. A variable that has been assigned meanwhile is left as it is. Running the cell again cancels
        the run before.
        """
        arguments = parse_argstring(self.task, line)
        try:
            self._send(arguments, f"%%{TASK} {line}\n{cell}", cell)
        except QnbError as error:
            fail_in_one_line(error)
        except SyntaxError as error:
            text = (error.text or "").strip()
            raise UsageError(f"line {error.lineno} is no Python: {error.msg}{f': {text}' if text else ''}") from None

    def _send(self, arguments: argparse.Namespace, shown: str, cell: str) -> None:
        options = TaskOptions(retries=arguments.retries, timeout=arguments.timeout)
        file = self._shell.compile.cache(shown, self._shell.execution_count, raw_code=shown)
        source = self._source(cell)
        tree = ast.parse(source, file)
        names = names_of(tree)
        _refuse_magics(names)
        variables = self._variables(names)
        back = _names_back(arguments.names, names)
        packed, sizes = pack_variables(variables)
        session, remark = session_here(self._shell)
        key = arguments.name or self._cell_id() or cell
        label = f"Cell In[{self._shell.execution_count}]"
        name = arguments.name or label
        remarks = [remark] if remark else []
        remarks += self._replace(key)
        run = run_async_cell if _awaits(tree, file) else run_cell
        future = session.submit_with(run, options.change(name=name), (source, shown, file, packed, back), {})
        session.flush()
        before = {each: self._shell.user_ns.get(each, MISSING) for each in back}
        told = ships_text(variables, sizes)
        self._jobs[key] = job = Job(name, future, back, before, told, (file, label), remarks)
        future._echo_made = Waiting(lambda: job.deliver(self._shell.user_ns))
        self._shell.push({"_task": future}, interactive=False)
        self._show(job)

    def _source(self, cell: str) -> str:
        """The cell as Python, each line at its number in the cell with its first line."""
        blank = len(cell) - len(cell.lstrip("\n"))
        source: str = self._shell.transform_cell(cell[blank:])
        return "\n" * (1 + blank) + source

    def _variables(self, names: Names) -> dict[str, Any]:
        namespace, hidden = self._shell.user_ns, self._shell.user_ns_hidden
        return {
            name: namespace[name]
            for name in names.used
            if name in namespace and (name not in hidden or namespace[name] is not hidden[name])
        }

    def _cell_id(self) -> str | None:
        parent = self._shell.get_parent() if hasattr(self._shell, "get_parent") else {}
        found = (parent or {}).get("metadata", {}).get("cellId")
        return None if found is None else str(found)

    def _replace(self, key: str) -> list[str]:
        """Cancel the run of this cell that is not over; says so."""
        before = self._jobs.pop(key, None)
        if before is None or before.future.done():
            return []
        before.replaced = before.delivered = True
        # It talks to the broker, and this cell is to return at once.
        threading.Thread(target=_cancel, args=(before.future,), name="qnb-cancel", daemon=True).start()
        STAGE.wake()
        ago = duration(time.time() - before.created_at)
        return [f"the run before, {before.future.id}, begun {ago} ago, is cancelled"]

    def _show(self, job: Job) -> None:
        if not hasattr(self._shell, "kernel"):
            print("\n".join([f"{job.name} is sent as {job.future.id}: {job.ships}", *job.remarks]))
            job.remarks.clear()
            return
        loop = None
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        output = CellOutput(job, self._shell.display_pub, uuid.uuid4().hex, self._deliverer(job, loop))
        STAGE.add(output)

    def _deliverer(self, job: Job, loop: asyncio.AbstractEventLoop | None) -> Callable[[], None]:
        def deliver() -> None:
            job.deliver(self._shell.user_ns)

        def soon() -> None:
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(deliver)

        return soon

    def deliver(self, *_: object) -> None:
        """Before each cell: what is over by now is there."""
        for key, job in list(self._jobs.items()):
            if job.future.done():
                del self._jobs[key]
                job.deliver(self._shell.user_ns)
                if not hasattr(self._shell, "kernel"):
                    _print_end(job)


def _print_end(job: Job) -> None:
    """Where no output can be updated: before the next cell."""
    future = job.future
    said = woven_text(future.output, future.displays)
    print("".join([f"{job.name} is {future.state}\n", said, future.traceback]).rstrip())
    for remark in job.remarks:
        print(remark)


def _cancel(future: Future) -> None:
    with contextlib.suppress(QnbError):  # the broker is away: its outcome will not be looked at
        future.cancel(terminate=True)


def _refuse_magics(names: Names) -> None:
    line = names.used.get("get_ipython")
    if line is not None:
        raise UsageError(f"line {line} has a magic or a shell command, which no worker has: put it into a cell before")


def _names_back(asked: list[str] | None, names: Names) -> list[str]:
    """Which variables come back."""
    if not asked:
        return [name for name in names.assigned if not name.startswith("_")]
    chosen = [name.strip() for part in asked for name in part.split(",") if name.strip()]
    for name in chosen:
        if name not in names.assigned and name not in names.used:
            raise UsageError(f"-o {name}: this cell has no variable {name!r}; it assigns {', '.join(names.assigned)}")
    return chosen


def _awaits(tree: ast.Module, file: str) -> bool:
    code = compile(tree, file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return bool(code.co_flags & CO_COROUTINE)


def ships_text(variables: dict[str, Any], sizes: dict[str, int]) -> str:
    """What a cell takes with it, the largest first."""
    values = [name for name, value in variables.items() if not isinstance(value, ModuleType)]
    values.sort(key=lambda name: -sizes[name])
    if not values:
        return "ships no variable"
    parts = [f"{name} ({type(variables[name]).__name__}, {size(sizes[name])})" for name in values[:_LISTED]]
    if rest := values[_LISTED:]:
        parts.append(f"{count(len(rest))} more ({size(sum(sizes[name] for name in rest))})")
    whole = f"; {size(sum(sizes.values()))} in all" if len(values) > 1 else ""
    return f"ships {', '.join(parts)}{whole}"
