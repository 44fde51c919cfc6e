"""Table and plot of `rate.md`: KL against true bits, from what `eval fidelity` wrote.

python docs/results/rate.py --plot docs/results/rate-mixture.png FILE.json …
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from allocation import cell, gather


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A line for each codec."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["codec"], []).append((row["bits_per_value"], row["kl"]["mean"]))
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, points in lines.items():
        bits, kl = zip(*sorted(points), strict=True)
        axes.plot(bits, kl, "o-", label=name, markersize=4, linewidth=1)
    axes.set(yscale="log", xlabel="bits per value, all bytes of the file", ylabel="KL, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows = gather(given.files)
    print("| codec | bits per value | KL | top-1 | ΔNLL |\n|---|---|---|---|---|")
    for row in rows:
        cells = [cell(row, figure) for figure in ("kl", "top1", "delta_nll")]
        print(f"| `{row['codec']}` | {row['bits_per_value']:.3f} | " + " | ".join(cells) + " |")
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
