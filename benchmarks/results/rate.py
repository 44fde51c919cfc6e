"""Table and plot of `rate.md`: KL against true bits, from what `benchmarks fidelity` wrote.

python -m benchmarks.results.rate --plot docs/results/rate-mixture.png FILE.json …
python -m benchmarks.results.rate --against mixture.json french.json

The second compares bits at equal KL, of one codec on two texts: the logarithm of KL is interpolated
between rows; the interval is of the ratio, from both texts' own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .allocation import cell, gather


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


def curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By bits, without those that take more than another for no lower a KL."""
    found: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: row["bits_per_value"]):
        if not found or row["kl"]["mean"] < found[-1]["kl"]["mean"]:
            found.append(row)
    return found


# Of a mean with its interval: the mean, and both ends.
_FIGURES: tuple[Callable[[Any], float], ...] = (
    lambda kl: kl["mean"],
    lambda kl: kl["ci95"][0],
    lambda kl: kl["ci95"][1],
)


def bits_at(rows: list[dict[str, Any]], log_kl: float) -> tuple[float, float]:
    """Bits at a KL, by the two rows of a `curve` around it, and their relative standard error."""
    bits = np.array([row["bits_per_value"] for row in rows])
    logs, lows, highs = (np.log([of(row["kl"]) for row in rows]) for of in _FIGURES)
    at = int(np.clip(np.searchsorted(-logs, -log_kl), 1, len(rows) - 1))
    slope = (bits[at] - bits[at - 1]) / (logs[at] - logs[at - 1])
    found = bits[at] + slope * (log_kl - logs[at])
    error = (highs - lows)[at - 1 : at + 1].mean() / (2 * 1.96)
    return float(found), float(abs(slope) * error / found)


def equal_kl(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> Iterator[str]:
    """The table, a line for each KL of ``others`` that ``rows`` reach too."""
    yield "| KL | bits per value | against | ratio |\n|---|---|---|---|"
    rows, others = curve(rows), curve(others)
    least, most = (of(row["kl"]["mean"] for row in rows) for of in (min, max))
    for kl in (row["kl"]["mean"] for row in others):
        if least * 0.95 <= kl <= most:
            (one, error), (two, other) = (bits_at(of, np.log(kl)) for of in (rows, others))
            ratio, spread = one / two, 1.96 * math.hypot(error, other)
            low, high = ratio * (1 - spread), ratio * (1 + spread)
            yield f"| {kl:.4f} | {one:.3f} | {two:.3f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |"


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    rows = gather(given.files)
    if given.against is not None:
        print("\n".join(equal_kl(rows, gather([given.against]))))
        return
    print("| codec | bits per value | KL | top-1 | ΔNLL |\n|---|---|---|---|---|")
    for row in rows:
        cells = [cell(row, figure) for figure in ("kl", "top1", "delta_nll")]
        print(f"| `{row['codec']}` | {row['bits_per_value']:.3f} | " + " | ".join(cells) + " |")
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
