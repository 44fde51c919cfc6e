"""The tables of `paper.md`, from what `gsm8k` wrote.

python -m benchmarks.results.paper FILE.json …
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..evals.paired import mcnemar, points_lost
from .handoff import Row, relay_table

_DEFAULT, _EQUAL = "lagrangian", "uniform"


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """The default allocation and equal bits, which differ in nothing else."""

    def what(row: Row) -> tuple[object, ...]:
        return tuple(row[key] for key in ("model", "codec", "policy", "hops", "budget", "n"))

    equal = {what(row): row for row in rows if row["allocator"] == _EQUAL}
    defaults = (row for row in rows if row["allocator"] == _DEFAULT)
    return [(row, equal[what(row)]) for row in defaults if what(row) in equal]


def pair_table(rows: list[Row]) -> None:
    """How many points the default is above equal bits, over the same problems."""
    print(
        "| model | hops | budget | bits, default | bits, `uniform` | points above `uniform` | p |"
    )
    print("|---|---|---|---|---|---|---|")
    for default, equal in pairs(rows):
        correct = [[bool(at) for at in row["correct"]] for row in (equal, default)]
        points = points_lost(*correct)
        low, high = points["ci95"]
        print(
            f"| {default['model']} | {default['hops']} | {default['budget']:g} "
            f"| {default['bits_per_value']:.2f} | {equal['bits_per_value']:.2f} "
            f"| {points['mean']:+.1f} [{low:+.1f}, {high:+.1f}] | {mcnemar(*correct):.3f} |"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    rows = [
        row for file in parser.parse_args().files for row in json.loads(file.read_text())["rows"]
    ]
    relay_table(rows)
    print()
    pair_table(rows)


if __name__ == "__main__":
    main()
