"""`qnb schedules`: what is made again and again, and when; `--cancel` ends one."""

from __future__ import annotations

import argparse

from qnb.cli import WELL, add_broker, read_key
from qnb.errors import UnknownTask


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb schedules`."""
    add_broker(parser)
    parser.add_argument("--backend", help="backend URL; else QNB_BACKEND, else the broker's own partner")
    parser.add_argument("--cancel", metavar="NAME", help="fire this one no more: its name or its run")


def run(name: str, options: argparse.Namespace) -> int:
    """Print the table, or cancel one."""
    from qnb import registry, settings
    from qnb.codec.signing import Signer
    from qnb.session.schedules import ALL_TICKS, table

    url = settings.absolute_url(settings.broker_url(options.broker))
    backend = registry.open_backend(
        settings.absolute_url(settings.backend_url(options.backend) or registry.partner_url(url))
    )
    try:
        found = table(backend, Signer(read_key(options)))
        if options.cancel is None:
            print(f"no schedules in {backend.url}" if not len(found) else repr(found))
            return WELL
        try:
            schedule = found[options.cancel]
        except UnknownTask as error:
            raise UnknownTask(f"{error} in {backend.url}") from None
        backend.revoke_many([(schedule.id, 0, ALL_TICKS)])
        schedule.cancel()
        print(f"{schedule.name} ({schedule.id}) is cancelled")
    finally:
        backend.close()
    return WELL
