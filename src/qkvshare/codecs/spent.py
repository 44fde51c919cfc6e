"""What a card's bytes are spent on: by kind, and on each token in each layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..card import CacheCard, Run
from ..card.digest import Bytes
from ..kernels.levels import TIERS
from ..kernels.reference import eights
from . import affine, blobs_of, from_record, streams
from .base import Codec, Shape
from .packed import Packed
from .transform import MOST as MOST_REFINEMENTS
from .transform import Transform
from .uniform import Uniform

# A small file can name many layers of many tokens, whose product is not in it.
MOST_NUMBERS = 1 << 23
_WIDTHS = np.array(TIERS, np.float32)

Bits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenBits:
    """Encoded bits per value of every token in every layer, float32 ``[layers, tokens]``.

    0 where a layer has forgotten the token, and in segments that a thin card lacks.
    """

    keys: Bits
    values: Bits


def sizes(card: CacheCard) -> dict[str, int]:
    """Bytes by kind; they add up to the file. Raises `CodecError` or the `CardError` family."""
    found = dict.fromkeys(("codes", "scales", "maps"), 0)
    for run in card.manifest.runs:
        if run.segment < card.thin:
            continue
        codec = from_record(run.codec)
        for number, layer in enumerate(card.manifest.layers):
            shape, nbytes = Shape.of(layer, run.held(number)), bytes_of(card, number, run)
            for kind, part in codec.parts(shape, nbytes).items():
                found[kind] += part
    return {**found, "ids": 4 * card.tokens, "header": card.header_bytes, "total": card.nbytes}


def bytes_of(card: CacheCard, layer: int, run: Run) -> int:
    """Bytes of one run in one layer; 0 where the card is thin."""
    if run.spans is None:
        return card.blob_bytes[layer][run.segment]
    return run.spans[layer].stop - run.spans[layer].start if run.segment >= card.thin else 0


def token_bits(card: CacheCard) -> TokenBits | None:
    """What the allocator gave each token; None where that were over `MOST_NUMBERS` numbers.

    A layer's add up to its bytes. `Packed` says each row's width. `Transform` says each token's
    step and the bytes of each chunk: how they are shared within one is estimated, see `_by_steps`.
    All other codecs treat the tokens of a run alike. Nothing is decoded, no profile is needed.
    Raises `CodecError` or the `CardError` family.
    """
    layers = card.manifest.layers
    if card.tokens * len(layers) > MOST_NUMBERS:
        return None
    bits = TokenBits(*(np.zeros((len(layers), card.tokens), np.float32) for _ in "kv"))
    read = lru_cache(maxsize=4)(card.blob)  # the parts of a compacted segment are in one
    runs = [run for run in card.manifest.runs if run.segment >= card.thin]
    codecs = [(from_record(run.codec), blobs_of(card, run, read)) for run in runs]
    for number, layer in enumerate(layers):
        for run, (codec, blobs) in zip(runs, codecs, strict=True):
            shape, at = (
                Shape.of(layer, run.held(number)),
                slice(run.end - run.held(number), run.end),
            )
            keys, values = _shares(codec, next(blobs), shape)
            bits.keys[number, at] = keys / (shape.kv_heads * shape.head_dim)
            bits.values[number, at] = values / (shape.kv_heads * shape.v_head_dim)
    return bits


def _shares(codec: Codec, blob: Bytes, shape: Shape) -> tuple[Bits, Bits]:
    """Bits of each token's keys and values, ``[tokens]``."""
    if isinstance(codec, Packed):
        return _by_rows(codec, blob, shape)
    if isinstance(codec, Transform):
        return _by_steps(codec, blob, shape)
    share = shape.v_head_dim / (shape.head_dim + shape.v_head_dim)
    values = blob.nbytes * share
    if isinstance(codec, Uniform):  # and `Kivi`, whose keys have other groups
        rows = sum(affine.sizes(shape.tokens, shape.kv_heads * shape.v_head_dim, codec.bits))
        values = min(rows, blob.nbytes)
    return _alike(blob.nbytes - values, shape), _alike(values, shape)


def _alike(nbytes: float, shape: Shape) -> Bits:
    return np.full(shape.tokens, 8 * nbytes / shape.tokens, np.float32)


def _by_rows(codec: Packed, blob: Bytes, shape: Shape) -> tuple[Bits, Bits]:
    """A row's byte and codes; mean and exponents are all tokens'."""
    found = codec.open(blob, shape)

    def bits(info: Bytes, dim: int, common: int) -> Bits:
        rows = 8 + eights(dim) * _WIDTHS[info & 7].reshape(shape.kv_heads, shape.tokens)
        shared: Bits = rows.sum(0) + _alike(common, shape)
        return shared

    keys = bits(found.keys.info, shape.head_dim, found.start + 2)
    return keys, bits(found.values.info, shape.v_head_dim, 2)


def _by_steps(codec: Transform, blob: Bytes, shape: Shape) -> tuple[Bits, Bits]:
    """A chunk's bytes are shared as Gaussian numbers of one variance would need them, coded at the
    tokens' steps ``2 ** (exponent / 4)``: ``½ log2(1 + (4 ** rate - 1) / step²)`` bits each."""
    if not 0 <= codec.refinements <= MOST_REFINEMENTS:
        raise streams.bad(f"{codec.refinements} refinements, expected 0 to {MOST_REFINEMENTS}")
    exponents, levels = streams.split(blob, shape.tokens, 1 + codec.refinements)
    bits = [np.zeros(shape.tokens, np.float32) for _ in "kv"]
    rest = blob.nbytes
    for n, at in enumerate(streams.chunks(shape.tokens)):
        for kind, dim in enumerate((shape.head_dim, shape.v_head_dim)):
            pairs = [level[2 * n + kind] for level in levels]
            nbytes = sum(len(codes) + len(escapes) for codes, escapes in pairs)
            rest -= nbytes
            rate = 8 * nbytes / (shape.kv_heads * dim * (at.stop - at.start))
            weights = np.log2(1 + np.expm1(min(rate, 32) * np.log(4)) * 2.0 ** (-exponents[at] / 2))
            if nbytes:
                bits[kind][at] = 8 * nbytes * weights / weights.sum()
    for one in bits:  # sizes and exponents are of both
        one += _alike(rest / 2, shape)
    return bits[0], bits[1]
