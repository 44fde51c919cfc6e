"""``python -m benchmarks kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkvshare.cli.options import MOST, Json
from qkvshare.cli.tables import print_table

from .options import bar

if TYPE_CHECKING:
    from ..timing.kernels import Geometry, KernelTiming

_MOST_BYTES = 1 << 36


def kernels(
    layers: Annotated[int, typer.Option(min=1, max=MOST, help="Layers of the cache.")] = 30,
    kv_heads: Annotated[int, typer.Option(min=1, max=MOST, help="KV heads of a layer.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, max=MOST, help="Tokens of the cache.")] = 4096,
    head_dim: Annotated[int, typer.Option(min=1, max=MOST, help="Numbers of a row.")] = 64,
    bits: Annotated[
        list[int] | None, typer.Option(help="Width of the rows; 0 mixes all. Repeat for several.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, max=1024, help="Repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Times that each is measured.")] = 15,
    json: Json = None,
) -> None:
    """Bytes per second of packed's kernels, against a fill and a copy of as many bytes."""
    from qkvshare.kernels.levels import TIERS

    from ..evals.results import write_rows
    from ..timing.kernels import MIXED, Geometry, measure_kernels

    widths, counts = bits or [MIXED, *TIERS[1:]], threads or [1, 2]
    if not set(widths) <= {MIXED, *TIERS}:
        raise typer.BadParameter(f"bits are 0 (all mixed) or one of {TIERS[1:]}.")
    nbytes = 2 * layers * kv_heads * tokens * head_dim * 4
    if nbytes > _MOST_BYTES:
        raise typer.BadParameter(
            f"such a cache has {nbytes:,} bytes; expected at most {_MOST_BYTES:,}."
        )
    geometry = Geometry(layers, kv_heads, tokens, head_dim)
    with bar() as shown:
        timings = measure_kernels(geometry, widths, counts, rounds)
        total = 3 * len(widths) * len(counts)
        rows = [
            _row(geometry, at) for at in shown.track(timings, total=total, description="rounds")
        ]
    if json != "-":
        _print(rows)
    if json is not None:
        write_rows(json, rows)


def _row(geometry: Geometry, timing: KernelTiming) -> dict[str, Any]:
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
    cells = []
    for row in rows:
        speeds = [
            f"{row[name] / 1e9:.1f}"
            for name in ("bytes_per_second", "fill_bytes_per_second", "copy_bytes_per_second")
        ]
        keys = [row["kernel"], str(row["bits"]), row["dtype"], str(row["threads"])]
        cells.append([*keys, *speeds, f"{row['of_fill']:.2f}"])
    titles = ["kernel", "bits", "dtype", "threads", "GB/s", "fill", "copy", "of fill"]
    print_table(titles, cells, keys=4)
