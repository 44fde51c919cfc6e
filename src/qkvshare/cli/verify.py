"""``qkvshare verify``: is every byte what it was, and is it this model's?"""

from __future__ import annotations

from typing import Annotated

import typer

from ..card import CacheCard
from .options import Card, KeyFile, TrustFile, key_of, out, progress


def verify(
    card: Card,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also compare with this model and its tokenizer."),
    ] = None,
    key: KeyFile = None,
    trust: TrustFile = None,
) -> None:
    """Check all digests of a card and, given a model, that the card is bound to it."""
    known = CacheCard.load(card, key=key_of(key), trust=trust)
    known.verify()
    known.require_fresh()
    out.print(f"digests: ok ({known.nbytes:,} bytes, card {known.digest[:12]}…)")
    if trust is not None and known.signature:
        out.print(f"signature: ok ({known.signature.key[:12]}…)")
    if model is None:
        return
    with progress.status("loading the model …"):
        from ..hf.identity import identify
        from ..hf.load import load_model

        loaded, tokenizer = load_model(model)
        known.manifest.identity.require(identify(loaded, tokenizer))
    out.print(f"identity: ok (weights {known.manifest.identity.weights[:12]}…)")
