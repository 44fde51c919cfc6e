"""The command line: one file per verb."""

from __future__ import annotations

from qkvshare.cli.main import run


def main() -> None:
    """Entry point of ``python -m benchmarks``."""
    run("benchmarks.cli.app")
