"""`qnb events`: a line of JSON an event, while it runs."""

from __future__ import annotations

import argparse
import json

import msgspec

from qnb.cli import WELL, add_broker


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb events`."""
    add_broker(parser)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long; default: Ctrl-C")


def run(name: str, options: argparse.Namespace) -> int:
    """Print events until the time is over."""
    from qnb.cli.client import Client

    with Client(options) as client:
        try:
            for event in client.events(options.seconds):
                print(json.dumps(msgspec.to_builtins(event)), flush=True)
        except KeyboardInterrupt:
            print()
    return WELL
