"""``python -m benchmarks train``."""

from __future__ import annotations

from typing import Annotated

import typer

from qkvshare.cli.options import MOST, Model, Output, progress, say

from .options import ContextTokens, Text


def train(
    text: Text,
    output: Output,
    model: Model = "smollm2-135m",
    contexts: Annotated[
        int, typer.Option(min=1, max=MOST, help="How many, from the text's start.")
    ] = 32,
    context_tokens: ContextTokens = 1024,
    following_tokens: Annotated[
        int, typer.Option(min=2, max=MOST, help="Tokens that look back.")
    ] = 64,
) -> None:
    """Train the allocators controller and chunk-router; writes a profile for --profile."""
    from qkvshare.hf.calibrate.texts import read_text, windows
    from qkvshare.hf.model.load import load_model

    from ..training import train_allocators

    content = read_text(text)
    with progress.status("loading the model …") as status:
        loaded, tokenizer = load_model(model)
        ids = tokenizer(content)["input_ids"]
        runs = windows(ids, contexts, context_tokens + following_tokens)
        profile = train_allocators(loaded, runs, following_tokens, lambda what: status.update(what))
    profile.save(output)
    say(f"{output}: {output.stat().st_size:,} bytes, learned from {contexts} contexts")
