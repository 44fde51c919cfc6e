"""``python -m benchmarks fidelity``."""

from __future__ import annotations

from typing import Annotated

import typer

from qkvshare.cli.options import MOST, Json, Model, ProfileFile, progress

from .options import (
    AllocatorNames,
    Budgets,
    CodecNames,
    ContextTokens,
    ScorerNames,
    Text,
    bar,
    make_row,
    make_settings,
    report,
)


def fidelity(
    text: Text,
    model: Model = "smollm2-135m",
    contexts: Annotated[
        int, typer.Option(min=1, max=MOST, help="How many, from the text's start.")
    ] = 16,
    context_tokens: ContextTokens = 1024,
    continuation_tokens: Annotated[
        int, typer.Option(min=2, max=MOST, help="Tokens compared.")
    ] = 64,
    codec: CodecNames = None,
    scorer: ScorerNames = None,
    allocator: AllocatorNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    json: Json = None,
) -> None:
    """KL, top-1 agreement and ΔNLL of the expected continuation, against no hand-off."""
    from qkvshare.hf.calibrate.texts import read_text, windows
    from qkvshare.hf.model.load import load_model

    from ..evals.fidelity import measure_fidelity

    settings = make_settings(codec, scorer, allocator, budget, profile)
    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        ids = tokenizer(content)["input_ids"]
        runs = windows(ids, contexts, context_tokens + continuation_tokens)
    with bar() as shown:
        measured = measure_fidelity(loaded, runs, context_tokens, settings)
        results = list(shown.track(measured, total=contexts, description="contexts"))
    lengths = {"context_tokens": context_tokens, "continuation_tokens": continuation_tokens}
    rows = [
        make_row(model, setting, column, contexts, **lengths)
        for setting, column in zip(settings, zip(*results, strict=True), strict=True)
    ]
    columns = {"kl": "{:.5f}".format, "top1": "{:.3f}".format, "delta_nll": "{:.4f}".format}
    report(rows, columns, json)
