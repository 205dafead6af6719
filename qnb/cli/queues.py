"""`qnb queues` and `qnb purge`."""

from __future__ import annotations

import argparse

from qnb.cli import WELL, add_broker
from qnb.message import DEFAULT_QUEUE


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of both."""
    if name == "purge":
        parser.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue to empty")
    add_broker(parser)


def run(name: str, options: argparse.Namespace) -> int:
    """List the queues, or empty one."""
    from qnb import registry, settings

    broker = registry.open_broker(settings.absolute_url(settings.broker_url(options.broker)))
    try:
        if name == "purge":
            dropped = broker.purge(options.queue)
            print(f"{dropped} messages dropped from {options.queue}")
        else:
            for queue in broker.queues():
                depth = broker.depth(queue)
                print(f"{queue}\t{'?' if depth is None else depth}")
    finally:
        broker.close()
    return WELL
