"""``qkvshare bench kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from .options import Json, out, progress

if TYPE_CHECKING:
    from ..bench.kernels import Geometry, Timing


def kernels(
    layers: Annotated[int, typer.Option(min=1, help="Layers of the cache.")] = 30,
    kv_heads: Annotated[int, typer.Option(min=1, help="KV heads of a layer.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the cache.")] = 4096,
    head_dim: Annotated[int, typer.Option(min=1, help="Numbers of a row.")] = 64,
    bits: Annotated[
        list[int] | None, typer.Option(help="Width of the rows; 0 mixes all. Repeat for several.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Repeat for several.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured.")] = 15,
    json: Json = None,
) -> None:
    """Bytes per second of packed's kernels, against a fill and a copy of as many bytes."""
    from ..bench.kernels import MIXED, Geometry, measure_kernels
    from ..evals.results import write_rows
    from ..kernels.levels import TIERS

    widths, counts = bits or [MIXED, *TIERS[1:]], threads or [1, 2]
    if not set(widths) <= {MIXED, *TIERS} or min(counts) < 1:
        raise typer.BadParameter(f"bits are 0 (all mixed) or one of {TIERS[1:]}, threads from 1.")
    geometry = Geometry(layers, kv_heads, tokens, head_dim)
    with Progress(console=progress, transient=True) as bar:
        timings = measure_kernels(geometry, widths, counts, rounds)
        total = 3 * len(widths) * len(counts)
        rows = [_row(geometry, at) for at in bar.track(timings, total=total, description="rounds")]
    if json != "-":
        _print(rows)
    if json is not None:
        write_rows(json, rows)


def _row(geometry: Geometry, timing: Timing) -> dict[str, Any]:
    from ..evals.results import spread

    kernel, fill, copy = (spread(of) for of in zip(*timing.rounds, strict=True))
    speed = [1000 * timing.nbytes / of["median"] for of in (kernel, fill, copy)]
    return {
        "kernel": timing.kernel,
        "bits": timing.bits or "mixed",
        "dtype": str(timing.dtype).removeprefix("torch."),
        "threads": timing.threads,
        "geometry": vars(geometry),
        "bytes": timing.nbytes,
        "ms": kernel,
        "bytes_per_second": speed[0],
        "fill_bytes_per_second": speed[1],
        "copy_bytes_per_second": speed[2],
        "of_fill": spread([fill / own for own, fill, _ in timing.rounds])["median"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("kernel", "bits", "dtype", "threads", "GB/s", "fill", "copy", "of fill")
    for row in rows:
        speeds = [
            f"{row[name] / 1e9:.1f}"
            for name in ("bytes_per_second", "fill_bytes_per_second", "copy_bytes_per_second")
        ]
        table.add_row(
            row["kernel"],
            str(row["bits"]),
            row["dtype"],
            str(row["threads"]),
            *speeds,
            f"{row['of_fill']:.2f}",
        )
    out.print(table)
