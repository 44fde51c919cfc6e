"""Tables and plots of `ttft.md`, from what `benchmarks ttft` wrote; and the floors of this machine.

python -m benchmarks.results.ttft FILE.json [--link LINK.json …] [--plot PNG] [--stages PNG]
python -m benchmarks.results.ttft --floors
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_COLORS = {"link": "#999", "open": "#f4a261", "inject": "#2a9d8f", "forward": "#264653"}


def name(row: Row) -> str:
    """A route, and its codec where it has one."""
    return f"`{row['path']}`" + ("" if row["codec"] == "none" else f", {row['codec']}")


def first(row: Row) -> float:
    """Milliseconds to the first token, median."""
    return float(row["ttft_ms"]["median"])


def later(row: Row) -> float:
    """Milliseconds of a token after the first, median."""
    return float(row["decode_ms_per_token"]["median"])


def ratio(
    one: Row | None, other: Row | None, of: Callable[[Row], float] = first, digits: int = 2
) -> str:
    """Of two rows, where there are both."""
    return "—" if one is None or other is None else f"{of(one) / of(other):.{digits}f}"


def among(rows: list[Row], tokens: int, path: str) -> Row | None:
    """The row of a path at a length, with `packed` where it has a codec."""
    found = [at for at in rows if at["context_tokens"] == tokens and at["path"] == path]
    return next((at for at in found if at["codec"] in ("none", "packed")), None)


def table(rows: list[Row]) -> None:
    """Every route at every length."""
    print(
        "| tokens | path | first token, ms | of `resident` | open | inject | forward "
        "| next token, ms | file, MB | in memory, MB | peak, MB |"
    )
    print("|---" * 11 + "|")
    for row in rows:
        base = among(rows, row["context_tokens"], "resident")
        stages = {key: f"{at['median']:.1f}" for key, at in row["stages_ms"].items()}
        spread = "{median:,.0f} [{p25:,.0f}, {p75:,.0f}]".format(**row["ttft_ms"])
        print(
            f"| {row['context_tokens']} | {name(row)} | {spread} | {ratio(row, base)} "
            f"| {stages['open']} | {stages['inject']} | {stages['forward']} "
            f"| {later(row):.0f} | {megabytes(row['bytes'])} "
            f"| {megabytes(row['cache_bytes'])} | {megabytes(row['peak_extra_bytes'])} |"
        )


def megabytes(count: int | None) -> str:
    """10^6 bytes."""
    return "—" if count is None else f"{count / 1e6:.1f}"


def ratios(rows: list[Row]) -> None:
    """Reading again against a card from disk, both against a cache in memory; and later tokens."""
    print(
        "| tokens | re-prefill ÷ card-file | card-file ÷ resident | card ÷ resident "
        "| next token, × as fast as `resident`: card-file | card-half | card-codes |"
    )
    print("|---" * 7 + "|")
    for tokens in lengths(rows):
        card, base, text = (
            among(rows, tokens, path) for path in ("card-file", "resident", "re-prefill")
        )
        cells = [ratio(text, card, digits=1), ratio(card, base)]
        cells.append(ratio(among(rows, tokens, "card"), base))
        for path in ("card-file", "card-half", "card-codes"):
            cells.append(ratio(base, among(rows, tokens, path), later))
        print(f"| {tokens} | " + " | ".join(cells) + " |")


def alone(rows: list[Row]) -> None:
    """What reading, checking and decoding take by themselves."""
    print("| tokens | codec | read, ms | verify, ms | decode, ms | open + inject, ms |")
    print("|---" * 6 + "|")
    for row in rows:
        if row["path"] == "card-file":
            parts = row["alone_ms"]
            whole = row["stages_ms"]["open"]["median"] + row["stages_ms"]["inject"]["median"]
            cells = " | ".join(
                f"{parts[key]['median']:.1f}" for key in ("read", "verify", "decode")
            )
            print(f"| {row['context_tokens']} | {row['codec']} | {cells} | {whole:.1f} |")


def over_a_link(rows: list[Row], local: list[Row]) -> None:
    """Behind a link, and the speed from which a card is sooner than text."""
    print("| tokens | path | MB | link, ms | first token, ms | sooner than text from |")
    print("|---" * 6 + "|")
    for row in rows:
        text = next(
            at
            for at in local
            if at["path"] == "re-prefill" and at["context_tokens"] == row["context_tokens"]
        )
        here = next(
            at
            for at in local
            if all(at[key] == row[key] for key in ("path", "codec", "context_tokens"))
        )
        gain = first(text) - first(here)
        more = 8 * (row["bytes"] - text["bytes"]) / 1e3
        even = "—" if row["path"] == "re-prefill" else f"{more / gain:.1f} Mbit/s"
        print(
            f"| {row['context_tokens']} | {name(row)} | {megabytes(row['bytes'])} "
            f"| {row['stages_ms']['link']['median']:,.0f} | {first(row):,.0f} | {even} |"
        )


def lengths(rows: list[Row]) -> list[int]:
    """Tokens of context."""
    return sorted({row["context_tokens"] for row in rows})


def draw(rows: list[Row], path: Path) -> None:
    """Time to first token against context, one line a route."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault(name(row).replace("`", ""), []).append((row["context_tokens"], first(row)))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for label, points in lines.items():
        style = "o-" if label.startswith("card") else "s--"
        axes.plot(*zip(*sorted(points), strict=True), style, label=label, markersize=4, linewidth=1)
    axes.set(xlabel="tokens of context", ylabel="first token, ms", xscale="log", yscale="log")
    axes.set_xticks(lengths(rows), lengths(rows))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_stages(rows: list[Row], path: Path) -> None:
    """Stacked bars of what is not reading everything again."""
    pyplot = _pyplot()
    rows = [row for row in rows if row["path"] != "re-prefill"]
    figure, axes = pyplot.subplots(figsize=(8, 0.24 * len(rows) + 1))
    labels = [f"{row['context_tokens']} {name(row)}".replace("`", "") for row in rows]
    left = [0.0] * len(rows)
    for stage, color in _COLORS.items():
        wide = [row["stages_ms"].get(stage, {"median": 0.0})["median"] for row in rows]
        if any(wide):
            axes.barh(labels, wide, left=left, color=color, label=stage)
        left = [a + b for a, b in zip(left, wide, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="ms")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def floors() -> None:
    """What the parts of a first token cannot be below here, for the embedded model."""
    import torch

    from qkvshare.hf.cache.pages import pages
    from qkvshare.hf.model.load import load_model
    from qkvshare.hf.session.costs import operations

    model, _ = load_model("smollm2-135m")
    weights = sum(part.nbytes for part in model.parameters())
    token = 2 * 30 * 3 * 64 * 4
    filled, source = pages(1 << 28), torch.ones(1 << 26)
    a = torch.randn(2048, 2048)
    fill = (1 << 28) / seconds(lambda: filled.fill_(1))
    read = source.nbytes / seconds(source.sum)
    rate = 2 * 2048**3 / seconds(lambda: a @ a)
    print(f"fill {fill / 1e9:.1f} GB/s, read {read / 1e9:.1f} GB/s, matrices {rate / 1e9:.0f} GF/s")
    print("| tokens | reading again, ms | going on (weights, cache), ms | writing the cache, ms |")
    print("|---" * 4 + "|")
    for tokens in (1024, 2048, 4096, 8128):
        again = operations(model, tokens + 11) / rate
        on = max((weights + tokens * token) / read, operations(model, 11, tokens) / rate)
        write = tokens * token / fill
        print(f"| {tokens} | {1e3 * again:,.0f} | {1e3 * on:.0f} | {1e3 * write:.1f} |")


def seconds(work: Callable[[], object]) -> float:
    """Median of 9, the first two not counted."""
    times = []
    for _ in range(11):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    """Print the tables, draw the plots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--link", nargs="*", type=Path, default=[])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--stages", type=Path)
    parser.add_argument("--floors", action="store_true")
    given = parser.parse_args()
    if given.floors:
        floors()
    if given.file is None:
        return
    rows = json.loads(given.file.read_text())["rows"]
    for show in (table, ratios, alone):
        show(rows)
        print()
    if given.link:
        over_a_link([row for at in given.link for row in json.loads(at.read_text())["rows"]], rows)
    if given.plot is not None:
        draw(rows, given.plot)
    if given.stages is not None:
        draw_stages(rows, given.stages)


if __name__ == "__main__":
    main()
