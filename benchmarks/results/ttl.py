"""Tables and plot of `ttl.md`: whom a full store should keep while agents wait on tools.

python -m benchmarks.results.ttl [--seeds N] [--json FILE.json] [--plot PNG]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qkvshare.store.ttl import Ttl

from .ttl_policies import Fixed, Gdsf, KeepForever, LearnedTtl, Oracle, Policy
from .ttl_simulation import Replay, simulate
from .ttl_trace import Call, World

Make = Callable[[int], Policy]  # of the limit in bytes
SIZES, LOADS = (128, 512, 2048), (2, 6)  # MB, agents that start in a minute
GRID = (1, 5, 15, 60, 300, 900, 3600)  # s, for the fixed time to live
POLICIES: dict[str, Make] = {
    "drop always": lambda limit: Fixed(0),
    "keep forever": lambda limit: KeepForever(),
    "LRU": lambda limit: Policy(),
    "GDSF": lambda limit: Gdsf(),
    "GDSF, 60 s of grace": lambda limit: Gdsf(60.0),
    "learned TTL": lambda limit: LearnedTtl(limit),
    "learned TTL, state": lambda limit: LearnedTtl(limit, uses_state=True),
    "least worth": lambda limit: LearnedTtl(limit, expires=False),
    "least worth, state": lambda limit: LearnedTtl(limit, expires=False, uses_state=True),
    "oracle": lambda limit: Oracle(),
}
WORLDS = {
    "as before": World(LOADS[1]),
    "shell and web 20 times slower": World(LOADS[1], slower=20),
    "every tool has a new name": World(LOADS[1], renamed=True),
}
CHANGED: dict[str, Make] = {
    "LRU": POLICIES["LRU"],
    "learned TTL": POLICIES["learned TTL"],
    "least worth": POLICIES["least worth"],
    "least worth, last 32": lambda limit: LearnedTtl(limit, expires=False, policy=Ttl(last=32)),
    "oracle": POLICIES["oracle"],
}


def _fixed(seconds: float) -> Make:
    return lambda limit: Fixed(seconds)


def crowded(seeds: int) -> list[dict[str, Any]]:
    """Every policy at every size and load; the fixed time to live is the best of the grid."""
    rows = []
    for load in LOADS:
        traces = [World(load).calls(seed) for seed in range(seeds)]
        for size in SIZES:
            limit = size * 10**6
            runs = {name: played(traces, make, limit) for name, make in POLICIES.items()}
            fixed = {at: played(traces, _fixed(at), limit) for at in GRID}
            best = min(fixed, key=lambda at: sum(run.paid_ms for run in fixed[at]))
            runs[f"fixed TTL, {best} s"] = fixed[best]
            for name, run in runs.items():
                rows.append({"size_mb": size, "load": load, **summary(name, run, runs["LRU"])})
    return rows


def changed(seeds: int) -> list[dict[str, Any]]:
    """What is paid in the second half if tools are not in it what they were."""
    rows = []
    for world, at in WORLDS.items():
        traces = [at.calls(seed) for seed in range(seeds)]
        for name, make in CHANGED.items():
            runs = [
                simulate(calls, make(SIZES[1] * 10**6), SIZES[1] * 10**6, 30 * at.minutes)
                for calls in traces
            ]
            late = [run.paid_late_ms / 1e3 for run in runs]
            rows.append({"world": world, "policy": name, "paid_late_s": interval(late)})
    return rows


def played(traces: list[list[Call]], make: Make, limit: int) -> list[Replay]:
    """One fresh policy for each trace."""
    return [simulate(calls, make(limit), limit) for calls in traces]


def summary(name: str, runs: list[Replay], base: list[Replay]) -> dict[str, Any]:
    """Means over seeds; intervals of what is paid and of its difference from LRU."""
    paid = [run.paid_ms / 1e3 for run in runs]
    against = [
        100 * (run.paid_ms / other.paid_ms - 1) for run, other in zip(runs, base, strict=True)
    ]
    total = {key: sum(getattr(run, key) for run in runs) for key in Replay._fields}
    return {
        "policy": name,
        "paid_s": interval(paid),
        "against_lru_percent": interval(against),
        "foreground_s": total["foreground_ms"] / 1e3 / len(runs),
        "byte_seconds": total["byte_seconds"] / len(runs),
        **{key: total[key] for key in ("returns", "hits", "evicted", "expired", "refused")},
    }


def interval(values: list[float]) -> dict[str, Any]:
    """Mean, and the 95 % interval of its bootstrap over seeds."""
    rng = np.random.default_rng(0)
    picks = rng.choice(values, (2000, len(values))).mean(1)
    return {"mean": float(np.mean(values)), "ci95": np.percentile(picks, [2.5, 97.5]).tolist()}


def show(cell: dict[str, Any], form: str) -> str:
    """Mean [low, high]."""
    low, high = (format(at, form) for at in cell["ci95"])
    return f"{cell['mean']:{form}} [{low}, {high}]"


def tables(rows: list[dict[str, Any]], later: list[dict[str, Any]]) -> None:
    """As in `ttl.md`."""
    print(
        "| agents a minute | store, MB | policy | paid, s | against LRU, % | foreground, s "
        "| hits of returns | GB·s | needed again: evicted, expired, refused |"
    )
    print("|---" * 9 + "|")
    for row in rows:
        print(
            f"| {row['load']} | {row['size_mb']} | {row['policy']} | {show(row['paid_s'], ',.0f')} "
            f"| {show(row['against_lru_percent'], '+.1f')} | {row['foreground_s']:,.0f} "
            f"| {row['hits'] / row['returns']:.3f} of {row['returns']:,} "
            f"| {row['byte_seconds'] / 1e9:,.0f} "
            f"| {row['evicted']:,}, {row['expired']:,}, {row['refused']:,} |"
        )
    print("\n| policy | " + " | ".join(WORLDS) + " |\n" + "|---" * (1 + len(WORLDS)) + "|")
    for name in CHANGED:
        cells = [show(row["paid_late_s"], ",.0f") for row in later if row["policy"] == name]
        print(f"| {name} | " + " | ".join(cells) + " |")


def shapes(seeds: int) -> None:
    """How long the drawn tools take, beside what TraceLab reports."""
    calls = [call for seed in range(seeds) for call in World(LOADS[1]).calls(seed)]
    print("| seconds | p50 | p90 | p99 |\n|---|---|---|---|")
    kinds: dict[str, Callable[[Call], bool]] = {
        "tools": lambda call: call.tool != "user",
        "users who come back": lambda call: call.tool == "user",
    }
    for kind, of in kinds.items():
        found = [call.seconds for call in calls if of(call) and math.isfinite(call.seconds)]
        print(
            f"| {kind} | "
            + " | ".join(f"{np.percentile(found, at):,.1f}" for at in (50, 90, 99))
            + " |"
        )
    print()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """What is paid against LRU, over the size of the store, a panel for each load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [name for name in POLICIES if name not in ("drop always", "keep forever", "LRU")]
    figure, panels = pyplot.subplots(1, len(LOADS), figsize=(10, 4.5), sharey=True)
    for axes, load in zip(panels, LOADS, strict=True):
        for name in names:
            cells = [
                row["against_lru_percent"]
                for row in rows
                if row["load"] == load and row["policy"] == name
            ]
            mean = np.array([cell["mean"] for cell in cells])
            low, high = np.array([cell["ci95"] for cell in cells]).T
            spread = (mean - low, high - mean)
            axes.errorbar(SIZES, mean, spread, fmt="o-", label=name, markersize=4, capsize=2)
        axes.axhline(0, color="#999", linewidth=1)
        axes.set(title=f"{load} agents a minute", xlabel="store, MB", xscale="log")
        axes.set_xticks(SIZES, SIZES)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="paid to first tokens, % against LRU")
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Simulate, print the tables, draw the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows, later = crowded(given.seeds), changed(given.seeds)
    shapes(given.seeds)
    tables(rows, later)
    if given.json is not None:
        given.json.write_text(json.dumps({"rows": rows, "changed": later}, indent=1))
    if given.plot is not None:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
