"""Who scores tokens and who allocates bits for a codec: what it carries, or the default."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...allocation import Lagrangian
from ...card.errors import CodecError
from ...codecs import Allocator, Codec, Stepped, Tiered
from ...scoring import AttentionScorer, Scorer


def allocator_of(codec: Codec) -> Allocator | None:
    """Who allocates the bits of a codec with tiers; None for any other."""
    return (codec.allocator or Lagrangian()) if isinstance(codec, Tiered) else None


def scorer_of(codec: Codec) -> Scorer | None:
    """The scorer that is asked; None where nobody is.

    Raises `CodecError` for a scorer that its allocator would not ask.
    """
    if not isinstance(codec, (Tiered, Stepped)):
        return None
    allocator = allocator_of(codec)
    if allocator is None or allocator.uses_salience:
        return codec.scorer or AttentionScorer()
    if codec.scorer is not None:
        raise CodecError(
            f"the allocator {allocator.name!r} asks no scorer, so {codec.scorer.name!r} would "
            "change nothing. Leave the scorer out, or choose an allocator that asks one, such as "
            "'lagrangian'."
        )
    return None


def with_strategy(
    codec: Codec, scorer: Scorer | None = None, allocator: Allocator | None = None
) -> Codec:
    """``codec`` with another scorer and another allocator, where they are given.

    Raises `CodecError` for a codec that takes none.
    """
    given = {"scorer": scorer, "allocator": allocator}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
    for name, value in chosen.items():
        if name not in fields:
            raise CodecError(
                f"the codec {codec.name!r} takes no {name}, so {value.name!r} would change "
                "nothing. Leave it out, or choose a codec with tiers, such as 'packed'."
            )
    changed: Codec = dataclasses.replace(codec, **chosen)  # type: ignore[type-var]
    return changed
