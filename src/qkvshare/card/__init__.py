"""What a card is: manifest, segments, identity, file. Knows no model and no codec."""

from .card import CacheCard
from .geometry import Layer, StateBits, StateTensor
from .identity import Adapter, Identity
from .keys import Key
from .manifest import (
    Allocation,
    CodecRecord,
    Hop,
    Manifest,
    PartRecord,
    Run,
    Segment,
    Signature,
)
from .signing import Signer
from .span import Span

__all__ = [
    "Adapter",
    "Allocation",
    "CacheCard",
    "CodecRecord",
    "Hop",
    "Identity",
    "Key",
    "Layer",
    "Manifest",
    "PartRecord",
    "Run",
    "Segment",
    "Signature",
    "Signer",
    "Span",
    "StateBits",
    "StateTensor",
]
