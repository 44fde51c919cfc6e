"""``qkvshare verify``: whether a card can be used, and by which model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..card import CacheCard
from .options import Card, KeyFile, TrustFile, key_of, progress, say


def verify(
    card: Card,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also check that this model wrote the card."),
    ] = None,
    key: KeyFile = None,
    trust: TrustFile = None,
) -> None:
    """Check that a card can be used: its digests, its numbers and, with -m, its model."""
    known = CacheCard.load(card, key=key_of(key), trust=trust)
    known.verify()
    known.require_fresh()
    say(f"digests: ok ({known.nbytes:,} bytes, card {known.digest[:12]}…)")
    if trust is not None and known.signature:
        say(f"signature: ok ({known.signature.key[:12]}…)")
    if model is None:
        return
    with progress.status("loading the model …"):
        from ..hf.cache.observe import require_geometry
        from ..hf.model.identity import identify
        from ..hf.model.load import load_model
        from ..hf.text.tokens import require_length, require_vocabulary

        loaded, tokenizer = load_model(model)
        known.manifest.identity.require(identify(loaded, tokenizer))
        require_geometry(loaded, known.manifest.layers, known.manifest.states)
        require_vocabulary(loaded, known.token_ids, "card")
        require_length(loaded, known.tokens)
    say(f"identity: ok (weights {known.manifest.identity.weights[:12]}…)")
