"""``qkvshare trim``: a smaller card, without the model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..card import CacheCard
from .options import Card, Output, out


def trim(
    card: Card,
    output: Output,
    budget: Annotated[float, typer.Option(min=0.01, help="Bits per value of the whole file.")],
) -> None:
    """Cut a card to a lower rate: drop refinements (capture --codec transform:refinements=1)."""
    from ..codecs import trim as cut

    known = CacheCard.load(card)
    smaller = cut(known, budget)
    smaller.save(output)
    out.print(
        f"{output}: {smaller.nbytes:,} of {known.nbytes:,} bytes, "
        f"{smaller.bits_per_value:.3f} of {known.bits_per_value:.3f} bits per value"
    )
