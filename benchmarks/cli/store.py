"""``python -m benchmarks store``."""

from __future__ import annotations

from typing import Annotated

import typer

from qkvshare.cli.options import MOST, Json, progress
from qkvshare.cli.tables import print_table


def store(
    cards: Annotated[int, typer.Option(min=1, max=MOST, help="Cards in the store.")] = 10_000,
    rounds: Annotated[
        int, typer.Option(min=1, max=MOST, help="Times that each is measured.")
    ] = 200,
    json: Json = None,
) -> None:
    """Time of put, get, match and open in a store of many small cards (31 kB each)."""
    from ..evals.results import spread, write_rows
    from ..timing.store import measure_store

    with progress.status("filling a store …"):
        found = list(measure_store(cards, rounds))
    if json != "-":
        cells = []
        for name, times in found:
            ms = spread(times)
            quartiles = f"{ms['p25']:.2f}, {ms['p75']:.2f}"
            cells.append([name, f"{ms['median']:.2f}", quartiles, str(ms["n"])])
        print_table(["operation", "ms", "quartiles", "n"], cells)
    if json is not None:
        rows = [{"operation": name, "cards": cards, "ms": spread(times)} for name, times in found]
        write_rows(json, rows)
