"""Allocators by name.

A new allocator is one file here and one line in `ALLOCATORS`, or an entry point of the group
``qkvshare.allocators`` in another package.
"""

from __future__ import annotations

from ..card.errors import CodecError
from ..registry import build, find
from .base import SINKS, Allocator, Demand
from .lagrangian import Lagrangian
from .random import Random
from .recency import Recency
from .salient import Salient
from .uniform import Uniform

__all__ = [
    "ALLOCATORS",
    "SINKS",
    "Allocator",
    "Demand",
    "Lagrangian",
    "Random",
    "Recency",
    "Salient",
    "Uniform",
    "find_allocator",
    "make_allocator",
]

ALLOCATORS: dict[str, type[Allocator]] = {
    kind.name: kind for kind in (Lagrangian, Uniform, Random, Recency, Salient)
}


def find_allocator(name: str) -> type[Allocator]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Allocator, ALLOCATORS, "allocator", CodecError)  # type: ignore[type-abstract]


def make_allocator(text: str) -> Allocator:
    """From ``name`` or ``name:field=value,…``. Raises `CodecError`."""
    return build(text, find_allocator, CodecError)
