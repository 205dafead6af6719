"""`%qnb`: what the session is doing, and connecting it, without a line of Python."""

# mypy: allow-untyped-calls, allow-untyped-decorators
# IPython's decorators have no types.
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from qnb.errors import QnbError
from qnb.notebook.places import from_here, room_text

if TYPE_CHECKING:
    from qnb.session.batch import Batch
    from qnb.session.session import Session

MAGIC = "qnb"
COMMANDS = (
    "status", "connect", "brokers", "workers", "queues", "runs", "events", "schedules", "results", "cancel", "close",
)  # fmt: skip
NO_SESSION = "no session yet: %qnb connect makes one with workers here, %qnb connect URL on a broker"


def _workers(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


@magics_class
class QnbMagics(Magics):
    """The magics of qnb. One instance a shell."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._shell: Any = shell
        self._connected: Session | None = None

    @property
    def _in_kernel(self) -> bool:
        return hasattr(self._shell, "kernel")

    @magic_arguments()
    @argument(
        "command",
        nargs="?",
        default="status",
        choices=COMMANDS,
        help="what to do; status when nothing is given",
    )
    @argument(
        "what",
        nargs="?",
        help="for connect: the broker's URL, as in redis://host/0; else $QNB_BROKER or a file here. For results and "
        "cancel: a run; else the newest of this session",
    )
    @argument("--backend", metavar="URL", help="for connect: where results are kept; else the broker's own partner")
    @argument("--workers", metavar="N", type=_workers, help="for connect: how many local worker processes to start")
    @line_magic
    def qnb(self, line: str) -> None:
        """Show the current session, connect another, list its workers, queues, runs and schedules, close it.

        `%qnb` alone shows broker, backend and workers; `brokers` what each broker can do; `events` watches what workers
        do from now on, in the variable `events`; `results` shows a run, and `cancel` stops it.
        `%qnb connect` puts the session into the variable `session` and makes it the current one.
        """
        arguments = parse_argstring(self.qnb, line)
        given = [name for name in ("backend", "workers") if getattr(arguments, name) is not None]
        if arguments.what is not None and arguments.command not in ("results", "cancel"):
            given.insert(0, "url")
        if arguments.command != "connect" and given:
            raise UsageError(f"%qnb {arguments.command} takes no {' or '.join(given)}: only connect does")
        try:
            getattr(self, f"_{arguments.command}")(arguments)
        except QnbError as error:
            fail_in_one_line(error)

    def _status(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        print(NO_SESSION if session is None else status_text(session))

    def _connect(self, arguments: argparse.Namespace) -> None:
        from qnb.session.session import Session

        session = Session(arguments.what, backend=arguments.backend, workers=arguments.workers)
        # The one from before goes only when the new one stands; a cell may run twice.
        before, self._connected = self._connected, session
        if before is not None:
            before.close()
        self._shell.push({"session": session}, interactive=True)
        print(status_text(session))

    def _events(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        self._stream = session.events()
        self._shell.push({"events": self._stream}, interactive=True)
        if not self._in_kernel:
            print("events.df has what workers do from now on; events.close() ends it")
            return
        display(self._stream)

    def _workers(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        display(session.workers)

    def _brokers(self, _arguments: argparse.Namespace) -> None:
        from qnb.monitor.brokers import brokers

        display(brokers())

    def _queues(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        if self._in_kernel:
            from qnb.notebook import queues_view

            queues_view.display(session)
            return
        queues = list(session.broker.queues())
        if not queues:
            print(f"no queues yet on {from_here(session.broker_url)}")
        for queue in queues:
            depth = session.broker.depth(queue)
            print(f"{queue:<24}{'?' if depth is None else depth:>8}")

    def _runs(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        if self._in_kernel:
            from qnb.notebook import runs_view

            runs_view.display(session)
            return
        display(session.runs())

    def _schedules(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        display(session.schedules())

    def _results(self, arguments: argparse.Namespace) -> None:
        batch = self._batch(arguments)
        if batch is not None:
            display(batch)

    def _cancel(self, arguments: argparse.Namespace) -> None:
        batch = self._batch(arguments)
        if batch is not None:
            print(f"{batch.cancel()} calls of {batch.run} cancelled")

    def _batch(self, arguments: argparse.Namespace) -> Batch | None:
        """The run that was named, or the newest map of this session."""
        session = _current()
        if session is None:
            print(NO_SESSION)
            return None
        run = arguments.what or session.newest_run()
        if run is None:
            print("no run yet in this session: session.runs() lists those of others")
            return None
        return session.attach(run)

    def _close(self, _arguments: argparse.Namespace) -> None:
        session = _current()
        if session is None:
            print(NO_SESSION)
            return
        session.close()
        print(f"closed: {session.broker_url}")


def _current() -> Session | None:
    from qnb.session.session import current_session

    return current_session()


def session_here(shell: Any) -> tuple[Session, str]:
    """The current session, or a new embedded one, which is put into `session`; and a word about the latter."""
    from qnb.session.session import Session

    found = _current()
    if found is not None:
        return found, ""
    made = Session()
    shell.push({"session": made}, interactive=True)
    return made, f"session is new: {from_here(made.broker_url)}"


def status_text(session: Session) -> str:
    """The session in four lines."""
    workers = list(session.workers)
    lanes = sum(int(worker.get("concurrency", 1)) for worker in workers)
    if workers:
        running = f"{len(workers)}, with {lanes} {'process' if lanes == 1 else 'processes'} in all"
    elif session.local_workers:
        running = "starting"
    else:
        running = f"none: start one with  qnb worker {session.broker_url}"
    same = session.backend_url == session.broker_url
    lines = {
        "broker": from_here(session.broker_url),
        "backend": "the same" if same else from_here(session.backend_url),
        "queue": session.queue,
        "workers": running,
    }
    if room := room_text(session.backend):
        lines["on disk"] = room
    return "\n".join(f"{name:<9}{value}" for name, value in lines.items())


def fail_in_one_line(error: Exception) -> NoReturn:
    """The cell fails, so that no later one runs without a session, but without a traceback of our own insides."""
    line = f"{type(error).__name__}: {error}"
    error._render_traceback_ = lambda: [line]  # type: ignore[attr-defined]
    raise error
