"""`qnb key`: a new signing key for QNB_KEY."""

from __future__ import annotations

import argparse
import secrets

from qnb.cli import WELL


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """`qnb key` has no options."""


def run(name: str, options: argparse.Namespace) -> int:
    """Print it; it is kept nowhere."""
    print(secrets.token_hex(32))
    return WELL
