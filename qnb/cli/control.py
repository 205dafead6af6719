"""`qnb inspect` and `qnb control`: one JSON object, {worker: reply}."""

from __future__ import annotations

import argparse
import json
import sys

from qnb.cli import FAILED, SILENT, USAGE, WELL, add_broker
from qnb.message import DEFAULT_QUEUE

INSPECT = ("ping", "stats", "active", "reserved", "scheduled", "revoked", "registered", "conf")
CONTROL = (
    "revoke", "shutdown", "pool_grow", "pool_shrink", "pause", "resume", "add_consumer", "cancel_consumer",
    "rate_limit", "time_limit",
)  # fmt: skip
_QUEUE = ("pause", "resume", "add_consumer", "cancel_consumer")


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb inspect` and `qnb control`."""
    parser.add_argument("command", choices=INSPECT if name == "inspect" else CONTROL)
    if name == "control":
        parser.add_argument(
            "--task", action="append", default=[], help="revoke: a task id; may be repeated; *_limit: a function's name"
        )
        parser.add_argument("--queue", default=DEFAULT_QUEUE, help="pause, resume, add_consumer, cancel_consumer")
        parser.add_argument("--rate", help="rate_limit: calls a second of each worker, as 10/s, 600/m; 0: no limit")
        parser.add_argument("--hard", type=float, help="time_limit: seconds, then its lane is killed")
        parser.add_argument("--soft", type=float, help="time_limit: seconds, then SoftTimeout is raised in it")
        parser.add_argument("--terminate", action="store_true", help="revoke: kill it when it runs")
        parser.add_argument("--number", type=int, default=1, help="pool_grow, pool_shrink: lanes")
    add_broker(parser)
    parser.add_argument("--to", action="append", help="a worker's name; may be repeated; default: all")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds to wait for answers")


def run(name: str, options: argparse.Namespace) -> int:
    """Ask, print, and tell by the exit code whether anybody answered."""
    from qnb.cli.client import Client

    arguments = _arguments(options)
    if isinstance(arguments, str):
        print(f"qnb control {options.command}: {arguments}", file=sys.stderr)
        return USAGE
    with Client(options) as client:
        replies = client.control.ask(options.command, arguments, options.to, options.timeout)
    print(json.dumps(replies, indent=2, sort_keys=True, default=str))
    if not replies:
        print("no worker answered: is one running on this broker, with the same key?", file=sys.stderr)
        return SILENT
    failed = any(isinstance(reply, dict) and "error" in reply for reply in replies.values())
    return FAILED if failed else WELL


def _arguments(options: argparse.Namespace) -> dict[str, object] | str:
    """What a command is sent with, or what is missing."""
    match options.command:
        case "revoke" if not options.task:
            return "name a task with --task ID"
        case "revoke":
            return {"tasks": options.task, "terminate": options.terminate}
        case "pool_grow" | "pool_shrink":
            return {"n": options.number}
        case command if command in _QUEUE:
            return {"queue": options.queue}
        case "rate_limit" | "time_limit" if len(options.task) != 1:
            return "name one function with --task NAME, as `qnb inspect registered` shows it"
        case "rate_limit" if options.rate is None:
            return "say how many with --rate, as in --rate 10/s"
        case "rate_limit":
            return {"task": options.task[0], "rate": options.rate}
        case "time_limit":
            return {"task": options.task[0], "hard": options.hard, "soft": options.soft}
    return {}
