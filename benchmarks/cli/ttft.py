"""``python -m benchmarks ttft``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkvshare.card.errors import QKVShareError
from qkvshare.cli.options import MOST, Json, Model, ProfileFile, finite, progress
from qkvshare.cli.tables import print_table

from .options import Budgets, CodecNames, Text, bar, make_settings

if TYPE_CHECKING:
    from ..timing.routes import Route
    from ..timing.ttft import RouteTiming

_PEERS = ("hf-quantized", "llama.cpp")


def ttft(
    text: Text,
    model: Model = "smollm2-135m",
    context_tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST, help="Tokens of context; repeat for several."),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="Of the receiver's question.")
    ] = 11,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="re-prefill, resident, full-precision-file, card, card-file, card-half, "
            "card-codes: all by default. Or, where installed, hf-quantized (quanto, hqq) and "
            "llama.cpp."
        ),
    ] = None,
    codec: CodecNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MOST,
            callback=finite,
            metavar="MBIT",
            help="Files first cross a link of so many Mbit a second.",
        ),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory too, in processes of their own.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Times that each is measured.")] = 7,
    json: Json = None,
) -> None:
    """Time to first token of every way to it, in turn, and of each token after it."""
    from qkvshare.hf.calibrate.texts import read_text, windows
    from qkvshare.hf.model.load import load_model

    from ..evals.results import write_rows
    from ..timing.ttft import Plan, measure_ttft

    routes = _routes(path)
    lengths = context_tokens or [1024]
    settings = make_settings(codec, None, None, budget, profile)
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        (ids,) = windows(tokenizer(content)["input_ids"], 1, max(lengths) + new_tokens)
    plan = Plan(routes, settings, rounds, bandwidth, model if memory else None, profile)
    with bar() as shown:
        timings = measure_ttft(loaded, ids, lengths, new_tokens, plan)
        tracked = shown.track(timings, total=len(lengths), description="lengths")
        rows = [row_of(model, new_tokens, bandwidth, at) for found in tracked for at in found]
    if json != "-":
        _print(rows)
    if json is not None:
        write_rows(json, rows)


def _routes(names: list[str] | None) -> list[type[Route]]:
    from ..timing.cards import ROUTES
    from ..timing.peers import installed

    found: list[type[Route]] = []
    for name in dict.fromkeys(names or ROUTES):
        if name not in (*ROUTES, *_PEERS):
            raise QKVShareError(
                f"no path {name!r}; expected one of {', '.join((*ROUTES, *_PEERS))}."
            )
        found += installed(name) if name in _PEERS else [ROUTES[name]]
    return found


def row_of(model: str, new_tokens: int, link: float | None, timing: RouteTiming) -> dict[str, Any]:
    """As `write_rows` takes it."""
    from ..evals.results import spread

    return {
        "model": model,
        "path": timing.route.name,
        "codec": timing.route.codec,
        "budget": timing.route.setting and timing.route.setting.bits,
        "context_tokens": timing.context_tokens,
        "new_tokens": new_tokens,
        "link_mbit": link,
        "ttft_ms": spread(timing.ttft),
        "stages_ms": {name: spread(times) for name, times in timing.stages.items()},
        "alone_ms": {name: spread(times) for name, times in timing.alone.items()},
        "bytes": timing.nbytes,
        "cache_bytes": timing.cache_bytes,
        "decode_ms_per_token": spread(timing.decode),
        "peak_extra_bytes": timing.peak,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    stages = [*dict.fromkeys(name for row in rows for name in row["stages_ms"])]
    memory = any(row["peak_extra_bytes"] is not None for row in rows)
    titles = ["tokens", "path", "codec", "first (ms)", *stages, "next (ms)", "bytes", "in memory"]
    cells = []
    for row in rows:
        first, cache, peak = row["ttft_ms"], row["cache_bytes"], row["peak_extra_bytes"]
        times = [f"{row['stages_ms'][name]['median']:,.1f}" for name in stages]
        cells.append(
            [
                str(row["context_tokens"]),
                row["path"],
                row["codec"],
                f"{first['median']:,.0f} [{first['p25']:,.0f}, {first['p75']:,.0f}]",
                *times,
                f"{row['decode_ms_per_token']['median']:,.1f}",
                f"{row['bytes']:,}",
                "—" if cache is None else f"{cache:,}",
                *(["—" if peak is None else f"{peak:,}"] if memory else []),
            ]
        )
    print_table([*titles, *(["peak (bytes)"] if memory else [])], cells, keys=3)
