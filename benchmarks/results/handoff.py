"""Tables and plots of `handoff.md`, from what `relay` and `recall --hops` wrote.

python -m benchmarks.results.handoff FILE.json … [--accuracy PNG] [--kl PNG]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .allocation import cell

Row = dict[str, Any]


def named(row: Row, bits: str) -> str:
    """A line of a plot; ``bits`` of the last card, or the ``budget`` of the first."""
    spender = "" if row["allocator"] in ("lagrangian", "smooth") else f" ({row['allocator']})"
    return f"{row['codec']}{spender}, {row[bits]:.1f} bits, {row['policy']}"


def relay_table(rows: list[Row]) -> None:
    """Accuracy, and KL where it was measured."""
    print(
        "| codec | bits per value | policy | hops | n | accuracy | points against no hand-off | p |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        points = "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(
            mean=row["delta_points"]["mean"],
            low=row["delta_points"]["ci95"][0],
            high=row["delta_points"]["ci95"][1],
        )
        handed = row["policy"] is not None
        print(
            f"| {name_cell(row)} | {row['bits_per_value']:.2f} | {row['policy'] or '—'} "
            f"| {row['hops']} | {row['n']} | {cell(row, 'accuracy')} "
            f"| {points if handed else '—'} | {row['mcnemar_p']:.2f} |"
        )


def kl_table(rows: list[Row], hops: int) -> None:
    """KL after each hand-off."""
    rows = [row for row in rows if row["hops"] == hops and row["kl_by_hop"]]
    print("| codec | bits per value | policy | " + " | ".join(map(str, range(1, hops + 1))) + " |")
    print("|---" * (3 + hops) + "|")
    for row in rows:
        found = " | ".join(f"{kl:.4f}" for kl in row["kl_by_hop"])
        print(f"| {name_cell(row)} | {row['bits_per_value']:.2f} | {row['policy']} | {found} |")


def recall_table(rows: list[Row]) -> None:
    """Exact copies and answer NLL."""
    print("| codec | bits per value | policy | hops | n | exact copies | answer NLL |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {name_cell(row)} | {row['bits_per_value']:.2f} | {row['policy'] or '—'} "
            f"| {row['hops']} | {row['n']} | {cell(row, 'exact')} | {cell(row, 'answer_nll')} |"
        )


def name_cell(row: Row) -> str:
    """Codec, and who spends where it is not the default."""
    if row["codec"] == "none":
        return "no hand-off" if row["policy"] is None else "text alone"
    other = row["codec"] == "packed" and row["allocator"] != "lagrangian"
    return f"`{row['codec']}`" + (f", `{row['allocator']}`" if other else "")


def draw(lines: dict[str, list[tuple[float, float]]], path: Path, **labels: Any) -> None:
    """One line for each name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, points in lines.items():
        style = "s--" if "requantize" in name else "o-"
        axes.plot(*zip(*sorted(points), strict=True), style, label=name, markersize=4, linewidth=1)
    axes.set(xlabel="hand-offs", **labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def collect(
    rows: list[Row], points: Callable[[Row], list[tuple[float, float]]], bits: str
) -> dict[str, list[tuple[float, float]]]:
    """All points of each line."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["codec"] != "none" and (found := points(row)):
            lines.setdefault(named(row, bits), []).extend(found)
    return lines


def main() -> None:
    """Print the tables, draw the plots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--accuracy", type=Path)
    parser.add_argument("--kl", type=Path)
    given = parser.parse_args()
    rows = [row for file in given.files for row in json.loads(file.read_text())["rows"]]
    relay = [row for row in rows if "accuracy" in row]
    if relay:
        relay_table(relay)
        most = max(row["hops"] for row in relay)
        print()
        kl_table(relay, most)
    if recall := [row for row in rows if "answer_nll" in row]:
        recall_table(recall)
    if given.accuracy is not None:
        lines = collect(relay, lambda row: [(row["hops"], row["delta_points"]["mean"])], "budget")
        draw(lines, given.accuracy, ylabel="accuracy, points against no hand-off")
    if given.kl is not None:
        longest = [row for row in relay if row["hops"] == most]
        lines = collect(longest, lambda row: [*enumerate(row["kl_by_hop"], 1)], "bits_per_value")
        draw(lines, given.kl, ylabel="KL, nats", yscale="log")


if __name__ == "__main__":
    main()
