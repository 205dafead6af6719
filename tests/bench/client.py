"""A system's client, in a process of its own: reads what to do as JSON lines, answers in JSON lines.

Ends when its input does, and ends its workers then.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.bench.systems.base import ROOT, Place, tree


class Failed(Exception):
    """The work could not be done, or gave a wrong result."""


class Client:
    """The measuring side's end of it."""

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self._lost = ""
        place.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1"}
        self._log = place.folder / "client.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.client", name, place.redis, str(place.folder), place.broker],
                cwd=place.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def ask(self, work: str, timeout: float = 200, **arguments: Any) -> Any:
        """Have something done; its numbers."""
        if self._lost:
            raise Failed(f"{self.name}, {work}: left out, since it never answered to {self._lost}")
        asking, answers = self._process.stdin, self._process.stdout
        assert asking
        assert answers
        try:
            asking.write(json.dumps([work, arguments]) + "\n")
            asking.flush()
        except BrokenPipeError:
            raise Failed(f"{self.name}: the client is gone: {self.said()}") from None
        ready, _, _ = select.select([answers], [], [], timeout)
        line = answers.readline() if ready else ""
        if not line:
            self._lost = work  # what it may say later would be taken for an answer to something else
            raise Failed(f"{self.name}, {work}: no answer within {timeout:g} s: {self.said()}")
        answer, error = json.loads(line)
        if error:
            raise Failed(f"{self.name}, {work}: {error}")
        return answer

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-1500:]

    def close(self) -> None:
        """End it and its workers."""
        assert self._process.stdin is not None
        family = tree(self._process.pid)
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            for process in family:
                process.kill()
            self._process.wait()


def main(name: str, redis: str, folder: str, broker: str) -> None:
    """The client's end of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    from tests.bench import crash, works
    from tests.bench.systems import system_class

    known = {**works.WORKS, "kill_worker": crash.kill_worker, "kill_lane": crash.kill_lane}
    system = system_class(name)(Place(redis, Path(folder), broker))
    try:
        for line in sys.stdin:
            work, arguments = json.loads(line)
            try:
                answer, error = known[work](system, **arguments), None
            except Exception as failure:
                traceback.print_exc()
                answer, error = None, f"{type(failure).__name__}: {failure}"[:500]
            print(json.dumps([answer, error]), file=answers, flush=True)
    finally:
        system.stop()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
