"""`qnb brokers`: the brokers against their features; with --probe, tried on live servers."""

from __future__ import annotations

import argparse

from qnb.cli import FAILED, WELL


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb brokers`."""
    parser.add_argument("urls", nargs="*", metavar="URL", help="servers to look at; else QNB_BROKER, when it is set")
    parser.add_argument("--probe", action="store_true", help="try each feature there, on queues of its own: under 10 s")


def run(name: str, options: argparse.Namespace) -> int:
    """Print the table; with --probe fail when a feature does not work."""
    from qnb.monitor.brokers import brokers
    from qnb.settings import asked_broker

    urls = options.urls or ([asked] if (asked := asked_broker()) else [])
    table = brokers(*urls, probe=options.probe)
    print(table)
    well = True
    for row in table:
        well = well and row.reachable is not False
        if row.url is not None:
            print(f"\n{row.url}: {row.server}")
        for one in row.measured:
            mark = {True: "works", False: "FAILS", None: "-"}[one.worked]
            print(f"  {one.feature:<18}{one.support.value:<8}{mark:<7}{one.seconds:5.1f} s  {one.said}")
            well = well and one.worked is not False
    return WELL if well else FAILED
