"""Scorers by name.

A new scorer is one file here and one line in `SCORERS`, or an entry point of the group
``qkvshare.scorers`` in another package.
"""

from __future__ import annotations

from ..card.errors import CodecError
from ..registry import find
from .attention import Attention
from .base import Glance, Scorer
from .key_norm import KeyNorm

__all__ = ["SCORERS", "Attention", "Glance", "KeyNorm", "Scorer", "find_scorer"]

SCORERS: dict[str, type[Scorer]] = {kind.name: kind for kind in (Attention, KeyNorm)}


def find_scorer(name: str) -> type[Scorer]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Scorer, SCORERS, "scorer", CodecError)  # type: ignore[type-abstract]
