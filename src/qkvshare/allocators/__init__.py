"""Allocators by name.

A new allocator is one file here and one line in `ALLOCATORS`, or an entry point of the group
``qkvshare.allocators`` in another package.
"""

from __future__ import annotations

from dataclasses import replace

from ..card.errors import CodecError
from ..profile import Profile
from ..registry import build, find
from .base import SINKS, Allocator, Demand, Features
from .chunk_router import ChunkRouter
from .controller import Controller
from .lagrangian import Lagrangian
from .learned import Learned
from .random import Random
from .recency import Recency
from .salient import Salient
from .uniform import Uniform

__all__ = [
    "ALLOCATORS",
    "SINKS",
    "Allocator",
    "ChunkRouter",
    "Controller",
    "Demand",
    "Features",
    "Lagrangian",
    "Learned",
    "Random",
    "Recency",
    "Salient",
    "Uniform",
    "find_allocator",
    "make_allocator",
]

_KINDS: tuple[type[Allocator], ...] = (
    Lagrangian,
    Uniform,
    Random,
    Recency,
    Salient,
    Controller,
    ChunkRouter,
)
ALLOCATORS: dict[str, type[Allocator]] = {kind.name: kind for kind in _KINDS}


def find_allocator(name: str) -> type[Allocator]:
    """The class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Allocator, ALLOCATORS, "allocator", CodecError)  # type: ignore[type-abstract]


def make_allocator(text: str, profile: Profile | None = None) -> Allocator:
    """From ``name`` or ``name:field=value,…``; learned ones with ``profile``.

    Raises `CodecError`.
    """
    made = build(text, find_allocator, CodecError)
    return replace(made, profile=profile) if isinstance(made, Learned) else made
