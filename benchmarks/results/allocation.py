"""Tables and plot of `allocation.md`, from what `fidelity` and `recall` wrote.

    python -m benchmarks.results.allocation --plot docs/results/allocation-gsm8k.png FILE.json …

Rows of the same codec, allocator, scorer and budget are put together, whichever file they are in.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FIGURES = {"kl": 4, "top1": 3, "delta_nll": 3, "exact": 3, "answer_nll": 3, "accuracy": 3}


def gather(paths: list[Path]) -> list[dict[str, Any]]:
    """All rows, one for each setting."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in paths:
        for row in json.loads(path.read_text())["rows"]:
            key = tuple(row[name] for name in ("codec", "allocator", "scorer", "budget"))
            found.setdefault(key, {}).update(row)
    return list(found.values())


def name_of(row: dict[str, Any]) -> str:
    """Who spends the bits."""
    if row["codec"] != "packed":
        return "no hand-off" if row["codec"] == "none" else f"codec {row['codec']}"
    return " × ".join(row[name] for name in ("scorer", "allocator") if row[name])


def cell(row: dict[str, Any], figure: str) -> str:
    """Mean and interval."""
    if figure not in row:
        return "—"
    digits, (low, high) = FIGURES[figure], row[figure]["ci95"]
    return f"{row[figure]['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """KL against recall: every line a way of spending, every point a budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if "kl" in row and "answer_nll" in row:
            at = row["kl"]["mean"], row["answer_nll"]["mean"], row["bits_per_value"]
            lines.setdefault(name_of(row), []).append(at)
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for number, (name, points) in enumerate(sorted(lines.items())):
        kl, nll, bits = zip(*points, strict=True)
        style = ("o-", "s--", "^:")[number // 10 % 3]
        axes.plot(kl, nll, style, label=name, markersize=4, linewidth=1)
        axes.annotate(f"{bits[0]:.1f}", (kl[0], nll[0]), fontsize=6)
    axes.set(xscale="log", xlabel="KL, nats (left is better)")
    axes.set(ylabel="answer NLL, nats (down is better)")
    axes.legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows = gather(given.files)
    print("| spent by | bits | KL | top-1 | ΔNLL | exact copies | answer NLL |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [cell(row, figure) for figure in FIGURES]
        print(f"| {name_of(row)} | {row['bits_per_value']:.2f} | " + " | ".join(cells) + " |")
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
