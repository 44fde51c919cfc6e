"""``qkvshare eval …``: the verbs, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .options import out

if TYPE_CHECKING:
    from ..evals.handoff import Setting

Text = Annotated[Path, typer.Option(help="Plain text, or JSONL with text, or question and answer.")]
ContextTokens = Annotated[int, typer.Option(min=1, help="Tokens handed over.")]
CodecNames = Annotated[list[str] | None, typer.Option("--codec", help="Repeat for several.")]
Budgets = Annotated[
    list[float] | None,
    typer.Option("--budget", help="Bits per value of the whole file; repeat for several."),
]


_LABELS = {
    "kl": "KL (nats)",
    "top1": "top-1",
    "delta_nll": "ΔNLL (nats)",
    "exact": "exact",
    "answer_nll": "answer NLL (nats)",
}


def make_settings(codecs: list[str] | None, budgets: list[float] | None) -> list[Setting]:
    """Every codec at every budget; ``uniform`` and no limit where none is named."""
    from ..codecs import find_codec
    from ..evals.handoff import Setting

    limits: list[float | None] = [*budgets] if budgets else [None]
    return [Setting(find_codec(name)(), at) for name in codecs or ["uniform"] for at in limits]


def make_row(
    model: str, setting: Setting | None, results: Sequence[Any], n: int, **extra: Any
) -> dict[str, Any]:
    """One row: what was measured, then mean and interval of every figure but the size."""
    from ..evals.results import interval

    row: dict[str, Any] = {
        "model": model,
        "codec": "none" if setting is None else setting.codec.name,
        "allocator": None if setting is None else "uniform",
        "scorer": None,
        "budget": None if setting is None else setting.budget,
        "bits_per_value": interval([result.bits_per_value for result in results])["mean"],
        **extra,
        "n": n,
    }
    figures = [name for name in vars(results[0]) if name != "bits_per_value"]
    return row | {name: interval([getattr(at, name) for at in results]) for name in figures}


def report(
    rows: list[dict[str, Any]], columns: Mapping[str, Callable[[float], str]], json: str | None
) -> None:
    """Print a table of the figures in ``columns``, write JSON where asked."""
    from ..evals.results import write_rows

    if json != "-":
        table = Table("codec", "budget", "bits/value", *(_LABELS[name] for name in columns), "n")
        for row in rows:
            budget = "—" if row["budget"] is None else f"{row['budget']:g}"
            cells = [_cell(row[name], text) for name, text in columns.items()]
            table.add_row(
                row["codec"], budget, f"{row['bits_per_value']:.3f}", *cells, str(row["n"])
            )
        out.print(table)
    if json is not None:
        write_rows(json, rows)


def _cell(value: dict[str, Any], text: Callable[[float], str]) -> str:
    low, high = value["ci95"]
    return f"{text(value['mean'])} [{text(low)}, {text(high)}]"
