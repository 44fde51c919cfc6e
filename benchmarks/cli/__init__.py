"""The command line: one file per verb."""

from __future__ import annotations

from collections.abc import Callable

from qkvshare.cli.main import run


def main() -> None:
    """Entry point of ``python -m benchmarks``."""
    run(_load)


def _load() -> Callable[[], None]:
    from .app import app

    return app
