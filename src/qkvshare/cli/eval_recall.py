"""``qkvshare eval recall``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress

from .evaluate import (
    AllocatorNames,
    Budgets,
    CodecNames,
    ContextTokens,
    ScorerNames,
    Text,
    make_row,
    make_settings,
    report,
)
from .options import Json, Model, ProfileFile, progress


def recall(
    text: Text,
    model: Model = "smollm2-135m",
    questions: Annotated[int, typer.Option(min=1, help="Rounded up to 8 for a context.")] = 200,
    context_tokens: ContextTokens = 1024,
    seed: Annotated[int, typer.Option(help="Chooses the facts.")] = 0,
    focus: Annotated[
        bool, typer.Option(help="A card for each question, whose sender knows it.")
    ] = False,
    codec: CodecNames = None,
    scorer: ScorerNames = None,
    allocator: AllocatorNames = None,
    budget: Budgets = None,
    profile: ProfileFile = None,
    json: Json = None,
) -> None:
    """Exact copies and answer NLL of facts hidden in filler text, asked after the hand-off."""
    from ..evals.recall import FACTS, measure_recall
    from ..evals.text import read_text
    from ..hf.load import load_model

    settings = make_settings(codec, scorer, allocator, budget, profile)
    content = read_text(text)
    contexts = -(-questions // FACTS)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
        filler = tokenizer(content)["input_ids"]
    with Progress(console=progress, transient=True) as bar:
        measured = measure_recall(
            loaded, tokenizer, filler, contexts, context_tokens, settings, seed, focus
        )
        results = list(bar.track(measured, total=contexts, description="contexts"))
    rows = [
        make_row(model, setting, column, contexts * FACTS, context_tokens=context_tokens)
        for setting, column in zip([None, *settings], zip(*results, strict=True), strict=True)
    ]
    for row in rows:
        if focus and row["scorer"]:
            row["scorer"] += " (focus)"
    report(rows, {"exact": "{:.3f}".format, "answer_nll": "{:.3f}".format}, json)
