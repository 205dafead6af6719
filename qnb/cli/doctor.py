"""`qnb doctor`: says in one sentence why nothing happens. Exit code 0 when all is well, 1 when not."""

from __future__ import annotations

import argparse

from qnb.cli import FAILED, WELL, add_broker
from qnb.message import DEFAULT_QUEUE


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb doctor`."""
    add_broker(parser)
    parser.add_argument("--backend", help="backend URL; else QNB_BACKEND, else the broker's own partner")
    parser.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue to look at")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds to wait for workers' answers")


def run(name: str, options: argparse.Namespace) -> int:
    """Look, print the walk, and the sentence."""
    from qnb import registry, settings
    from qnb.cli.client import Client
    from qnb.errors import QnbError
    from qnb.monitor.doctor import Patient, diagnose

    url = settings.absolute_url(settings.broker_url(options.broker))
    backend_url = settings.absolute_url(settings.backend_url(options.backend) or registry.partner_url(url))
    with Client(options) as client:
        try:
            backend = registry.open_backend(backend_url)
        except QnbError as error:
            print(f"backend   {error}\n\nWorkers and sessions cannot keep results: {error}")
            return FAILED
        try:
            found = diagnose(
                Patient(client.broker, backend, options.queue, client.signer.key_ids, client.control), options.timeout
            )
        finally:
            backend.close()
    print(found)
    return WELL if found.well else FAILED
