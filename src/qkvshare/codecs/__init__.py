"""Codecs: keys and values of a run of tokens to bytes, and back.

A new codec is one file here and one line in `records.CODECS`, or an entry point of the group
``qkvshare.codecs`` in another package; `base` says what it must do.
"""

from __future__ import annotations

from .base import Codec
from .kinds import Attended, Stepped, Trimmable
from .layers import LayerKV, RotatedKV, Shape, empty
from .packed import Packed
from .raw import Raw
from .records import (
    CODECS,
    codec_names,
    default_codec,
    find_codec,
    from_record,
    make_codec,
    takes_profile,
)
from .runs import DTYPES, decode_runs, dtype_of, shapes_of
from .tiered import Allocator, BitMap, Demand, Energy, LayerBits, Tiered
from .transform import Transform
from .trimming import trim

__all__ = [
    "CODECS",
    "DTYPES",
    "Allocator",
    "Attended",
    "BitMap",
    "Codec",
    "Demand",
    "Energy",
    "LayerBits",
    "LayerKV",
    "Packed",
    "Raw",
    "RotatedKV",
    "Shape",
    "Stepped",
    "Tiered",
    "Transform",
    "Trimmable",
    "codec_names",
    "decode_runs",
    "default_codec",
    "dtype_of",
    "empty",
    "find_codec",
    "from_record",
    "make_codec",
    "shapes_of",
    "takes_profile",
    "trim",
]
