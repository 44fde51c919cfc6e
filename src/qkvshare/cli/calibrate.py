"""``qkvshare calibrate``: learn once for a model what the transform codec needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..card.errors import ProfileError
from ..card.files import require_output
from .options import MOST, Model, finite, progress, say, writable

_FOREIGN = 5  # one in so many of the other contexts


def calibrate(
    model: Model,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Plain text, or JSONL with text, or question and answer. Without it, the model "
            "writes as much."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=writable,
            help="Where to write the profile; by default the folder where it is at hand.",
        ),
    ] = None,
    contexts: Annotated[
        int, typer.Option(min=1, max=MOST, help="How many, from the text's start.")
    ] = 12,
    other_contexts: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST,
            help="How many besides, for all else there is: one in five in 20 languages, the others "
            "written by the model.",
        ),
    ] = 20,
    context_tokens: Annotated[int, typer.Option(min=8, max=MOST, help="Tokens of each.")] = 1024,
    following_tokens: Annotated[
        int, typer.Option(min=2, max=MOST, help="Tokens that look back.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of what the model writes.")] = 0,
    rate: Annotated[
        float,
        typer.Option(
            min=0.05,
            max=MOST,
            callback=finite,
            help="Bits per value that the transform is fitted for.",
        ),
    ] = 1.0,
) -> None:
    """Fit the codec transform to a model."""
    from ..hf.calibrate.calibrate import calibrate as learn
    from ..hf.calibrate.languages import languages
    from ..hf.calibrate.own_text import own_text
    from ..hf.calibrate.texts import read_text, windows
    from ..hf.model.load import load_model
    from ..profile import profiles

    if output is None:
        # Found out now, not after minutes of work.
        folder = profiles()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProfileError(f"{folder} cannot be made: {error}. Name a file with -o.") from error
        require_output(folder / "new.safetensors", ProfileError)
    content = None if text is None else read_text(text)
    given, tokens = 0 if text is None else contexts, context_tokens + following_tokens
    foreign = other_contexts // _FOREIGN
    written = contexts - given + other_contexts - foreign
    with progress.status("loading the model …") as status:
        loaded, tokenizer = load_model(model)
        ids = [] if content is None else tokenizer(content)["input_ids"]
        runs = list(windows(ids, given, tokens))
        runs += languages(tokenizer, foreign, tokens)
        if written:
            status.update("the model writes text of its own …")
            runs += own_text(loaded, written, tokens, seed)
        profile = learn(loaded, runs, following_tokens, rate, lambda what: status.update(what))
    if output is None:
        output = profiles() / f"{profile.digest}.safetensors"
    profile.save(output)
    say(
        f"{output}: {output.stat().st_size:,} bytes, learned from {given} contexts of the text, "
        f"{foreign} in other languages and {written} that the model wrote"
    )
