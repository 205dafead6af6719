"""`qnb inspect` and `qnb control`: one JSON object, {worker: reply}."""

from __future__ import annotations

import argparse
import json
import sys

from qnb.cli import FAILED, SILENT, WELL, add_broker

INSPECT = ("ping", "stats", "active", "reserved", "scheduled", "revoked", "registered", "conf")
CONTROL = ("revoke", "shutdown", "pool_grow", "pool_shrink")


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb inspect` and `qnb control`."""
    parser.add_argument("command", choices=INSPECT if name == "inspect" else CONTROL)
    if name == "control":
        parser.add_argument("--task", action="append", default=[], help="revoke: a task id; may be repeated")
        parser.add_argument("--terminate", action="store_true", help="revoke: kill it when it runs")
        parser.add_argument("--number", type=int, default=1, help="pool_grow, pool_shrink: lanes")
    add_broker(parser)
    parser.add_argument("--to", action="append", help="a worker's name; may be repeated; default: all")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds to wait for answers")


def run(name: str, options: argparse.Namespace) -> int:
    """Ask, print, and tell by the exit code whether anybody answered."""
    from qnb.cli.client import Client

    arguments: dict[str, object] = {}
    if options.command == "revoke":
        if not options.task:
            print("qnb control revoke: name a task with --task ID", file=sys.stderr)
            return 2
        arguments = {"tasks": options.task, "terminate": options.terminate}
    elif options.command in ("pool_grow", "pool_shrink"):
        arguments = {"n": options.number}
    with Client(options) as client:
        replies = client.control.ask(options.command, arguments, options.to, options.timeout)
    print(json.dumps(replies, indent=2, sort_keys=True, default=str))
    if not replies:
        print("no worker answered: is one running on this broker, with the same key?", file=sys.stderr)
        return SILENT
    failed = any(isinstance(reply, dict) and "error" in reply for reply in replies.values())
    return FAILED if failed else WELL
