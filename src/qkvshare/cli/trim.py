"""``qkvshare trim``: a smaller card, without the model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..card import CacheCard
from .options import MOST, Card, KeyFile, Output, finite, key_of, say


def trim(
    card: Card,
    output: Output,
    bits: Annotated[
        float,
        typer.Option(min=0.01, max=MOST, callback=finite, help="Bits per value of the whole file."),
    ],
    key: KeyFile = None,
) -> None:
    """Make a card smaller: drop refinements (see capture --codec transform:refinements=1)."""
    from ..codecs import trim as cut

    seal = key_of(key)
    known = CacheCard.load(card, key=seal)
    saved = cut(known, bits).save(output, key=seal)
    smaller = CacheCard.load(saved, key=seal)  # sealing adds to the size
    say(
        f"{output}: {smaller.nbytes:,} of {known.nbytes:,} bytes, "
        f"{smaller.bits_per_value:.3f} of {known.bits_per_value:.3f} bits per value"
    )
