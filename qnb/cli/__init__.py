"""The `qnb` command. One file a command group; each is imported when it is called for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Exit codes: well, failed, wrong usage, nobody answered.
WELL, FAILED, USAGE, SILENT = 0, 1, 2, 69

COMMANDS = {
    "worker": ("qnb.cli.worker", "run a worker"),
    "inspect": ("qnb.cli.control", "ask workers: ping stats active reserved scheduled revoked registered conf"),
    "control": ("qnb.cli.control", "tell workers: revoke shutdown pool_grow pause rate_limit and more"),
    "events": ("qnb.cli.events", "watch what happens, a line an event"),
    "brokers": ("qnb.cli.brokers", "what each broker can do; --probe tries it on the live server"),
    "doctor": ("qnb.cli.doctor", "say why nothing happens"),
    "queues": ("qnb.cli.queues", "list queues and what waits in them"),
    "runs": ("qnb.cli.runs", "list the newest runs"),
    "schedules": ("qnb.cli.schedules", "list schedules; --cancel ends one"),
    "purge": ("qnb.cli.queues", "drop what waits in a queue"),
    "key": ("qnb.cli.key", "print a new signing key"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] == "--version":
        from qnb import __version__

        print(f"qnb {__version__}")
        return WELL
    if not given or given[0] not in COMMANDS:
        return _help(given)
    name = given[0]
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(prog=f"qnb {name}", description=COMMANDS[name][1])
    module.add_arguments(parser, name)
    options = parser.parse_intermixed_args(given[1:])  # a URL may stand behind options too
    from qnb.errors import QnbError

    try:
        return int(module.run(name, options))
    except QnbError as error:
        print(f"qnb {name}: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone, as in `qnb events | head`
        sys.stderr.close()
        return WELL


def _help(given: list[str]) -> int:
    asked = bool(given) and given[0] in ("-h", "--help", "help")
    out = sys.stdout if asked else sys.stderr
    if given and not asked:
        print(f"qnb: no command {given[0]!r}", file=out)
    print("usage: qnb COMMAND …  (qnb COMMAND --help tells more)\n", file=out)
    for name, (_, text) in COMMANDS.items():
        print(f"  {name:9} {text}", file=out)
    return WELL if asked else USAGE


def add_broker(parser: argparse.ArgumentParser) -> None:
    """The options of every command that talks to a broker."""
    parser.add_argument("broker", nargs="?", help="broker URL; else QNB_BROKER, else the embedded file")
    parser.add_argument("--key-file", help="file with the signing key; else QNB_KEY, else the per-user file")


def read_key(options: argparse.Namespace) -> bytes:
    """The signing key as asked for."""
    from qnb.errors import ConfigurationError
    from qnb.settings import load_key, read_key_file

    if not options.key_file:
        return load_key()
    try:
        return read_key_file(options.key_file)
    except OSError as error:
        raise ConfigurationError(f"cannot read the key file {options.key_file}: {error.strerror}") from error
