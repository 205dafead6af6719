"""`qnb runs`: the newest runs in a backend, whoever made them."""

from __future__ import annotations

import argparse

from qnb.cli import WELL, add_broker, read_key


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb runs`."""
    add_broker(parser)
    parser.add_argument("--backend", help="backend URL; else QNB_BACKEND, else the broker's own partner")
    parser.add_argument("--limit", type=int, default=20, help="how many at most")


def run(name: str, options: argparse.Namespace) -> int:
    """Print the table."""
    from qnb import registry, settings
    from qnb.codec.signing import Signer
    from qnb.session.history import table

    url = settings.absolute_url(settings.broker_url(options.broker))
    backend = registry.open_backend(
        settings.absolute_url(settings.backend_url(options.backend) or registry.partner_url(url))
    )
    try:
        frame = table(backend, Signer(read_key(options)), options.limit)
    finally:
        backend.close()
    print(f"no runs in {backend.url}" if frame.empty else frame.to_string())
    return WELL
