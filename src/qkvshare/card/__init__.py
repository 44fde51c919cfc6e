"""What a card is: manifest, segments, identity, file. Knows no model and no codec."""

from .card import CacheCard
from .identity import Adapter, Identity
from .manifest import Allocation, Codec, Hop, Layer, Manifest, Part, Run, Segment

__all__ = [
    "Adapter",
    "Allocation",
    "CacheCard",
    "Codec",
    "Hop",
    "Identity",
    "Layer",
    "Manifest",
    "Part",
    "Run",
    "Segment",
]
