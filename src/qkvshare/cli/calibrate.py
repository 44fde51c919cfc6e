"""``qkvshare calibrate``: learn a model's profile once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..card.errors import ProfileError
from ..card.files import require_output
from .options import MOST, Model, finite, progress, say, writable

_FOREIGN = 5  # one in this many of the other contexts is in another language


def calibrate(
    model: Model,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Plain text, or JSONL with text, or question and answer. Without it, the model "
            "writes its own."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=writable,
            help="Where to write the profile; by default the profiles' folder.",
        ),
    ] = None,
    contexts: Annotated[
        int, typer.Option(min=1, max=MOST, help="How many contexts of the text, from its start.")
    ] = 12,
    other_contexts: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST,
            help="How many other contexts: one in five in 20 languages, the rest written by the "
            "model.",
        ),
    ] = 20,
    context_tokens: Annotated[
        int, typer.Option(min=8, max=MOST, help="Tokens of a context.")
    ] = 1024,
    following_tokens: Annotated[
        int, typer.Option(min=2, max=MOST, help="Tokens after it that attend to it.")
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="Seed of what the model writes."),
    ] = 0,
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
    from ..hf.calibrate.own_text import own_text
    from ..hf.calibrate.texts import languages, read_text, windows
    from ..hf.model.load import load_model
    from ..profile import profiles

    if output is None:
        # Fail now, not after minutes of work.
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
