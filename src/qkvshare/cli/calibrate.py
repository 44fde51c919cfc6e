"""``qkvshare calibrate``: learn once for a model what codec and allocators can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import Text
from .options import Model, out, progress


def calibrate(
    model: Model,
    text: Text,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the profile; by default the folder where it is at hand.",
        ),
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="How many, from the text's start.")] = 24,
    context_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 1024,
    following_tokens: Annotated[int, typer.Option(min=1, help="Tokens that look back.")] = 64,
    rate: Annotated[
        float, typer.Option(min=0.05, help="Bits per value that the transform is fitted for.")
    ] = 1.0,
) -> None:
    """Fit the codec transform to a model, train the allocators controller and chunk-router."""
    from ..evals.text import read_text, windows
    from ..hf.calibrate import calibrate as learn
    from ..hf.load import load_model
    from ..profile import profiles

    content = read_text(text)
    with progress.status("loading the model …") as status:
        loaded, tokenizer = load_model(model)
        ids = tokenizer(content)["input_ids"]
        runs = list(windows(ids, contexts, context_tokens + following_tokens))
        profile = learn(loaded, runs, following_tokens, rate, lambda what: status.update(what))
    if output is None:
        profiles().mkdir(parents=True, exist_ok=True)
        output = profiles() / f"{profile.digest}.safetensors"
    profile.save(output)
    out.print(f"{output}: {output.stat().st_size:,} bytes, learned from {contexts} contexts")
