"""`%load_ext qnb` and `%qnb`, in a shell without a notebook round it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import qnb
from tests.contract.conftest import until


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A shell without the extension, in a folder and with a key of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QNB_KEY", "a key for these tests")
    for name in ("QNB_BROKER", "QNB_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    yield InteractiveShell(config=config, ipython_dir=str(tmp_path / "ipython"))
    if session := qnb.current_session():
        session.close()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(bare: InteractiveShell) -> InteractiveShell:
    run(bare, "%load_ext qnb")
    return bare


def run(shell: InteractiveShell, code: str) -> None:
    shell.run_cell(code).raise_error()


def completions(shell: InteractiveShell, text: str) -> list[str]:
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def everything(shell: InteractiveShell) -> dict[str, Any]:
    """What an extension might change."""
    manager = shell.magics_manager
    return {
        "line magics": dict(manager.magics["line"]),
        "cell magics": dict(manager.magics["cell"]),
        "classes": dict(manager.registry),
        "matchers": list(shell.Completer.custom_matchers),
        "hooks": {name: list(calls) for name, calls in shell.events.callbacks.items()},
        "formatters": {kind: dict(f.type_printers) for kind, f in shell.display_formatter.formatters.items()},
        "variables": set(shell.user_ns),
    }


def test_unload_restores_exactly_what_was_there(bare: InteractiveShell) -> None:
    mine: Any = lambda line: print("mine")  # noqa: E731
    bare.register_magic_function(mine, "line", "qnb")
    run(bare, "%unload_ext qnb")  # loads IPython's own magics for extensions
    before = everything(bare)
    run(bare, "%load_ext qnb")
    assert everything(bare) != before
    run(bare, "%load_ext qnb")
    run(bare, "%reload_ext qnb")
    run(bare, "%unload_ext qnb")
    assert everything(bare) == before


def test_unload_leaves_what_was_put_in_its_place_since(shell: InteractiveShell) -> None:
    later: Any = lambda line: None  # noqa: E731
    shell.register_magic_function(later, "line", "qnb")
    run(shell, "%unload_ext qnb")
    assert shell.magics_manager.magics["line"]["qnb"] is later


def test_loading_makes_no_session_and_no_file(shell: InteractiveShell, tmp_path: Path) -> None:
    run(shell, "%qnb")
    assert qnb.current_session() is None
    assert os.listdir(tmp_path) in ([], ["ipython"])


def test_without_a_session_it_says_how_to_connect(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", "status", "workers", "queues", "runs", "events", "schedules", "results", "cancel", "close"):
        run(shell, f"%qnb {command}")
        assert capsys.readouterr().out.startswith("no session yet: %qnb connect")


def test_connect_status_workers_close(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    run(shell, "%qnb connect memory:qnb-magics --workers 2")
    session = shell.user_ns["session"]
    assert session is qnb.current_session()
    run(shell, "%qnb")
    status = capsys.readouterr().out
    assert f"broker   {session.broker_url}" in status
    assert "backend  the same" in status
    assert "queue    qnb" in status
    assert "workers  1, with 2 processes in all" in status or "workers  starting" in status
    run(shell, "answer = session.submit(divmod, 7, 2).result(10)")
    assert shell.user_ns["answer"] == (3, 1)
    run(shell, "%qnb workers")
    assert "2" in capsys.readouterr().out
    run(shell, "%qnb close")
    assert session.closed
    assert capsys.readouterr().out == f"closed: {session.broker_url}\n"


def test_connecting_again_closes_the_one_before(shell: InteractiveShell) -> None:
    run(shell, "%qnb connect memory:one --workers 0")
    first = shell.user_ns["session"]
    run(shell, "%qnb connect memory:two --workers 0")
    assert first.closed
    assert not shell.user_ns["session"].closed


def test_a_session_of_the_user_is_not_closed_by_connect(shell: InteractiveShell) -> None:
    run(shell, "import qnb; mine = qnb.Session('memory:mine', workers=0)")
    run(shell, "%qnb connect memory:other --workers 0")
    assert not shell.user_ns["mine"].closed
    shell.user_ns["mine"].close()


@pytest.mark.parametrize(
    "line, said",
    [
        ("%qnb conect", "UsageError: argument command: invalid choice: 'conect'"),
        ("%qnb connect memory: --workers two", "UsageError: argument --workers: 'two' is not a number of processes"),
        ("%qnb connect memory: --nodes 2", "UsageError: unrecognized arguments: --nodes 2"),
        ("%qnb close memory:", "UsageError: %qnb close takes no url: only connect does"),
        (
            "%qnb connect reddis://localhost",
            "UnknownScheme: no broker has the URL scheme 'reddis'; did you mean redis: ?",
        ),
        ("%qnb connect localhost", "ConfigurationError: a broker or backend is named by a URL"),
    ],
)
def test_errors_are_one_line(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    result = shell.run_cell(line)
    assert not result.success  # later cells do not run
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(said)


def test_help_names_every_command_and_option(shell: InteractiveShell) -> None:
    text = shell.magics_manager.magics["line"]["qnb"].__doc__
    assert all(word in text for word in ("status", "connect", "workers", "close", "--backend", "--workers", "redis://"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("%qnb ", "status connect brokers workers queues runs events schedules results cancel close".split()),  # noqa: SIM905
        ("%qnb c", ["connect", "cancel", "close"]),
        ("x = 1\n%qnb con", ["connect"]),
        ("%qnb connect redis+", ["redis+cluster://", "redis+sentinel://", "redis+socket://"]),
        ("%qnb connect redis://h --", ["--backend", "--workers"]),
        ("%qnb connect redis://h --workers 2 --", ["--backend"]),
        ("%qnb connect --backend sql", ["sqlite:"]),
        ("%%task ", ["-o", "--retries", "--timeout", "--name"]),
        ("%%task --t", ["--timeout"]),
        ("%%task -o x --n", ["--name"]),
    ],
)
def test_completion(shell: InteractiveShell, text: str, expected: list[str]) -> None:
    assert completions(shell, text) == expected


def test_completion_of_other_lines_is_untouched(shell: InteractiveShell) -> None:
    shell.user_ns["qnb_variable"] = 1
    assert "qnb_variable" in completions(shell, "print(qnb_var")
    assert completions(shell, "%qn") == ["%qnb"]
    run(shell, "%unload_ext qnb")
    assert "connect" not in completions(shell, "%qnb con")


def test_runs_results_and_cancel(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("qnb", "connect memory:magic-runs")
    session = shell.user_ns["session"]
    shell.run_line_magic("qnb", "results")
    assert "no run yet" in capsys.readouterr().out
    batch = session.map(abs, range(3))
    batch.results(20)
    shell.run_line_magic("qnb", f"cancel {batch.run}")
    assert f"0 calls of {batch.run} cancelled" in capsys.readouterr().out
    shell.run_line_magic("qnb", "results")
    assert "3" in capsys.readouterr().out
    assert completions(shell, f"%qnb results {batch.run[:4]}") == [batch.run]
    assert completions(shell, "%qnb cancel ") == [batch.run]
    while batch.run not in session.runs().index:
        session.recorder.close()
    shell.run_line_magic("qnb", "runs")
    assert batch.run in capsys.readouterr().out
    shell.run_line_magic("qnb", "queues")
    assert "qnb" in capsys.readouterr().out
    shell.run_line_magic("qnb", "events")
    assert "events.df" in capsys.readouterr().out
    session.submit(abs, -1).result(20)
    until(lambda: "task-done" in set(shell.user_ns["events"].df.kind))
    shell.user_ns["events"].close()
    shell.run_line_magic("qnb", "brokers")
    assert "confirmed publish" in capsys.readouterr().out
    shell.run_line_magic("qnb", "close")


def test_task_without_a_notebook(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    """It makes the embedded session; the variables are there before the next cell."""
    run(shell, "n = 20")
    run(shell, "%%task --name doubling\nprint('from', n)\nm = 2 * n\nm")
    said = capsys.readouterr().out.splitlines()
    future = shell.user_ns["_task"]
    assert said[0] == f"doubling is sent as {future.id}: ships n (int, {len(pickled(20))} B)"
    assert said[1] == "session is new: sqlite:///.qnb/qnb.db"
    assert "m" not in shell.user_ns
    assert future.result(30)["m"] == 40
    run(shell, "assert m == 40")
    assert capsys.readouterr().out.splitlines() == ["doubling is done", "from 20", "40", "m is in the notebook"]
    shell.user_ns["session"].close()


def pickled(value: object) -> bytes:
    import cloudpickle

    return bytes(cloudpickle.dumps(value, 5))


def test_help_of_task(shell: InteractiveShell) -> None:
    text = shell.magics_manager.magics["cell"]["task"].__doc__
    assert all(word in text for word in ("-o", "--retries", "--timeout", "--name", "_task", "Running the cell again"))
