"""Scorers by name.

A new scorer is one file here and one line in `SCORERS`, or an entry point of the group
``qkvshare.scorers`` in another package.
"""

from __future__ import annotations

from ..card.errors import CodecError
from ..registry import build, find, label
from .accumulated import Accumulated
from .attention import Attention
from .base import Glance, Scorer, Sight
from .expected import Expected
from .key_norm import KeyNorm
from .mixture import Mixture
from .normalized import Normalized
from .random import Random
from .recency import Recency
from .reconstruction import Reconstruction
from .window import Window

__all__ = [
    "SCORERS",
    "Accumulated",
    "Attention",
    "Expected",
    "Glance",
    "KeyNorm",
    "Mixture",
    "Normalized",
    "Random",
    "Recency",
    "Reconstruction",
    "Scorer",
    "Sight",
    "Window",
    "find_scorer",
    "label_scorer",
    "make_scorer",
    "parts_of",
]

_KINDS: tuple[type[Scorer], ...] = (
    Attention,
    Accumulated,
    Normalized,
    Window,
    Expected,
    Reconstruction,
    KeyNorm,
    Recency,
    Random,
)
SCORERS: dict[str, type[Scorer]] = {kind.name: kind for kind in _KINDS}


def find_scorer(name: str) -> type[Scorer]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Scorer, SCORERS, "scorer", CodecError)  # type: ignore[type-abstract]


def make_scorer(text: str) -> Scorer:
    """From ``name``, ``name:field=value,…``, or several of these joined by ``+``."""
    parts = tuple(build(part, find_scorer, CodecError) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Mixture(parts)


def label_scorer(scorer: Scorer) -> str:
    """What `make_scorer` makes it of."""
    return "+".join(map(label, parts_of(scorer)))


def parts_of(scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorers that are really asked."""
    return scorer.parts if isinstance(scorer, Mixture) else (scorer,)
