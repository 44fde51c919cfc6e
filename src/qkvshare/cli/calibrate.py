"""``qkvshare calibrate``: learn once for a model what some allocators need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .evaluate import Text
from .options import Model, out, progress


def calibrate(
    model: Model,
    text: Text,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the profile.")],
    contexts: Annotated[int, typer.Option(min=1, help="How many, from the text's start.")] = 24,
    context_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 1024,
    following_tokens: Annotated[int, typer.Option(min=1, help="Tokens that look back.")] = 64,
) -> None:
    """Train the allocators controller and chunk-router on a text and write a profile."""
    from ..evals.text import read_text, windows
    from ..hf.calibrate import calibrate as learn
    from ..hf.load import load_model

    content = read_text(text)
    with progress.status("loading the model …"):
        loaded, tokenizer = load_model(model)
    runs = windows(tokenizer(content)["input_ids"], contexts, context_tokens + following_tokens)
    with Progress(console=progress, transient=True) as bar:
        profile = learn(loaded, bar.track(runs, description="contexts"), following_tokens)
    profile.save(output)
    out.print(f"{output}: {output.stat().st_size:,} bytes, learned from {contexts} contexts")
