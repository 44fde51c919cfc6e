"""``qkvshare capture``: read a text and write its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..card import CacheCard, Signer
from ..card.errors import CaptureError
from ..card.files import read_text
from .options import (
    AgentName,
    AllocatorName,
    Bits,
    CodecName,
    KeyFile,
    Model,
    Output,
    ProfileFile,
    ScorerName,
    key_of,
    progress,
    say,
)


def _state_bits(bits: int | None) -> int | None:
    if bits not in (None, 4, 8, 32):
        raise typer.BadParameter(f"{bits} is none of 4, 8 and 32.")
    return bits


def capture(
    model: Model,
    output: Output,
    text: Annotated[Path | None, typer.Option(help="A file to read (UTF-8).")] = None,
    prompt: Annotated[str | None, typer.Option(help="A text to read.")] = None,
    codec: CodecName = None,
    scorer: ScorerName = None,
    allocator: AllocatorName = None,
    bits: Bits = None,
    state_bits: Annotated[
        int | None,
        typer.Option(
            callback=_state_bits,
            help="Bits per number of recurrent states, for models that keep them: 4, 8 or 32 "
            "(all that the model has).",
        ),
    ] = None,
    profile: ProfileFile = None,
    agent: AgentName = "",
    key: KeyFile = None,
    sign: Annotated[
        Path | None, typer.Option(help="A private key to sign with (see key signer).")
    ] = None,
) -> None:
    """Read a text with a model, and write the model's state to a card."""
    if (text is None) == (prompt is None):
        raise typer.BadParameter("give either --text FILE or --prompt STR.")
    content = read_text(text, CaptureError) if text is not None else prompt
    if not content:
        raise CaptureError("the text is empty; expected at least one character.")

    seal, signer = key_of(key), None if sign is None else Signer.load(sign)
    with progress.status("loading the model …") as status:
        from ..allocation import make_allocator
        from ..codecs import default_codec, make_codec
        from ..hf.capture.capture import capture as capture_state
        from ..hf.capture.strategy import with_strategy
        from ..hf.model.identity import identify
        from ..hf.model.load import load_model
        from ..profile import Profile
        from ..scoring import make_scorer

        learned = None if profile is None else Profile.load(profile)
        # Errors in the options show before the model is loaded.
        own = codec is None and allocator is None
        chosen = None if own else make_codec("packed" if codec is None else codec, learned)
        judge = None if scorer is None else make_scorer(scorer)
        spender = None if allocator is None else make_allocator(allocator, learned)
        loaded, tokenizer = load_model(model)
        if chosen is None:
            chosen = default_codec(identify(loaded).weights, learned)
        status.update("reading …")
        card = capture_state(
            loaded,
            tokenizer,
            content,
            codec=with_strategy(chosen, judge, spender),
            bits=bits,
            agent=agent,
            state_bits=state_bits,
        )
        if signer is not None:
            card = card.signed(signer)
        card = CacheCard.load(card.save(output, key=seal), key=seal)  # sealing adds to the size
    written = card.manifest.segments[-1].codec
    if written.profile is None:
        how = f"{written.name} {written.parameters or ''}".strip()
    else:  # which a receiver needs
        how = f"{written.name}, for receivers that have the profile {written.profile[:12]}…"
    each = f", {card.bits_per_value:.3f} bits per value" if card.manifest.layers else ""
    say(f"{output}: {card.tokens} tokens in {card.nbytes:,} bytes{each} ({how})")
