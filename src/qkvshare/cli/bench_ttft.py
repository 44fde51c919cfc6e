"""``qkvshare bench ttft``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from ..card.errors import QKVShareError
from .evaluate import Text, make_settings, name_setting
from .options import Json, Model, ProfileFile, out, progress

if TYPE_CHECKING:
    from ..bench.ttft import Timing


def ttft(
    text: Text,
    model: Model = "smollm2-135m",
    context_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of context; repeat for several.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of the receiver's question.")] = 11,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="re-prefill, resident, full-precision-file, card, card-file; all by default."
        ),
    ] = None,
    codec: Annotated[str, typer.Option(help="Of the card.")] = "packed",
    budget: Annotated[float | None, typer.Option(min=0.01, help="Bits per value.")] = None,
    profile: ProfileFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured.")] = 7,
    json: Json = None,
) -> None:
    """Time to first token of every way to it, in turn, and of each token after it."""
    from ..bench.paths import WAYS
    from ..bench.ttft import measure_ttft
    from ..evals.results import write_rows
    from ..evals.text import read_text, windows
    from ..hf.load import load_model

    for name in path or []:
        if name not in WAYS:
            raise QKVShareError(f"no path {name!r}; expected one of {', '.join(WAYS)}.")
    lengths, names = context_tokens or [1024], list(dict.fromkeys(path or WAYS))
    limits = None if budget is None else [budget]
    (setting,) = make_settings([codec], None, None, limits, profile)
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        (ids,) = windows(tokenizer(content)["input_ids"], 1, max(lengths) + new_tokens)
    with Progress(console=progress, transient=True) as bar:
        timings = measure_ttft(loaded, ids, lengths, new_tokens, names, setting, rounds)
        tracked = bar.track(timings, total=len(lengths), description="lengths")
        rows = [_row(model, new_tokens, at) for found in tracked for at in found]
    if json != "-":
        _print(rows)
    if json is not None:
        write_rows(json, rows)


def _row(model: str, new_tokens: int, timing: Timing) -> dict[str, Any]:
    from ..evals.results import spread

    named = name_setting(model, timing.setting)
    return {
        "model": model,
        "path": timing.way,
        "codec": named["codec"],
        "budget": named["budget"],
        "context_tokens": timing.context_tokens,
        "new_tokens": new_tokens,
        "ttft_ms": spread(timing.ttft),
        "stages_ms": {name: spread(times) for name, times in timing.stages.items()},
        "bytes": timing.nbytes,
        "decode_ms_per_token": spread(timing.decode),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    stages = list(rows[0]["stages_ms"])
    table = Table("tokens", "path", "first token (ms)", *stages, "next (ms)", "bytes")
    for row in rows:
        first = row["ttft_ms"]
        table.add_row(
            str(row["context_tokens"]),
            row["path"],
            f"{first['median']:,.0f} [{first['p25']:,.0f}, {first['p75']:,.0f}]",
            *(f"{row['stages_ms'][name]['median']:,.1f}" for name in stages),
            f"{row['decode_ms_per_token']['median']:,.1f}",
            f"{row['bytes']:,}",
        )
    out.print(table)
