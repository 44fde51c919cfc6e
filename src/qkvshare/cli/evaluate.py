"""``qkvshare eval``: what quality costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from .options import Json, Model, out, progress

evaluate = typer.Typer(help="What quality costs, measured on real cards.", no_args_is_help=True)


@evaluate.callback()
def _group() -> None:
    """Keep the verb's name even while there is only one."""


@evaluate.command()
def fidelity(
    text: Annotated[Path, typer.Option(help="Plain text, or JSONL with text or question/answer.")],
    model: Model = "smollm2-135m",
    contexts: Annotated[int, typer.Option(min=1, help="How many contexts, from the start.")] = 16,
    context_tokens: Annotated[int, typer.Option(min=1, help="Tokens handed over.")] = 1024,
    continuation_tokens: Annotated[int, typer.Option(min=2, help="Tokens compared.")] = 64,
    codec: Annotated[list[str] | None, typer.Option(help="Codec; repeat for several.")] = None,
    budget: Annotated[
        list[float] | None, typer.Option(help="Bits per value of the file; repeat for several.")
    ] = None,
    json: Json = None,
) -> None:
    """KL, top-1 agreement and ΔNLL of the expected continuation, against no hand-off."""
    from ..codecs import find_codec
    from ..evals.fidelity import measure
    from ..evals.results import interval, write_rows
    from ..evals.text import read_text, windows
    from ..hf.load import load_model

    limits: list[float | None] = [*budget] if budget else [None]
    settings = [(find_codec(name)(), limit) for name in codec or ["uniform"] for limit in limits]
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        ids = tokenizer(content)["input_ids"]
        runs = windows(ids, contexts, context_tokens + continuation_tokens)
    with Progress(console=progress, transient=True) as bar:
        scores = list(
            bar.track(
                measure(loaded, runs, context_tokens, settings),
                total=len(runs),
                description="contexts",
            )
        )
    rows: list[dict[str, Any]] = []
    for index, (chosen, limit) in enumerate(settings):
        column = [score[index] for score in scores]
        rows.append(
            {
                "model": model,
                "codec": chosen.name,
                "allocator": "uniform",
                "scorer": None,
                "budget": limit,
                "bits_per_value": interval([s.bits_per_value for s in column])["mean"],
                "context_tokens": context_tokens,
                "continuation_tokens": continuation_tokens,
                "n": len(column),
                "kl": interval([s.kl for s in column]),
                "top1": interval([s.top1 for s in column]),
                "delta_nll": interval([s.delta_nll for s in column]),
            }
        )
    if json != "-":
        _print(rows)
    if json is not None:
        write_rows(json, rows)


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("codec", "budget", "bits/value", "KL (nats)", "top-1", "ΔNLL (nats)", "contexts")
    for row in rows:
        table.add_row(
            row["codec"],
            "—" if row["budget"] is None else f"{row['budget']:g}",
            f"{row['bits_per_value']:.3f}",
            *(
                _cell(row[key], digits)
                for key, digits in (("kl", 5), ("top1", 3), ("delta_nll", 4))
            ),
            str(row["n"]),
        )
    out.print(table)


def _cell(value: dict[str, Any], digits: int) -> str:
    low, high = value["ci95"]
    return f"{value['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
