"""What a card says of itself, and what its bytes are used for: kinds, layers and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..card import CacheCard, Run
from .layers import Shape
from .records import from_record
from .runs import blobs_of

# A small file can name many layers of many tokens, whose product is not in it.
MOST_NUMBERS = 1 << 23

Bits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenBits:
    """Encoded bits per value of every token in every layer, float32 ``[layers, tokens]``.

    0 where a layer has forgotten the token, and in segments that a thin card lacks.
    """

    keys: Bits
    values: Bits


def describe(card: CacheCard) -> dict[str, Any]:
    """A card as JSON types: all that its header says, but for digests; nothing else is read.

    Times are ISO 8601, or None. The signature is not checked here. Sizes are of the whole file, and
    ``bytes`` are by kind, see `sizes`. ``bits_per_value`` is None for a card of states alone.
    ``segments`` has one entry for each run of tokens that was encoded at once, with the number of
    its segment and whether its bytes are ``here``.

    Raises `CodecError` or `CardError` for a codec or parameters that are unknown here.
    """
    manifest = card.manifest
    return {
        "digest": card.digest,
        "created": manifest.created.isoformat(),
        "expires": None if manifest.expires is None else manifest.expires.isoformat(),
        "sealed": card.sealed,
        "salt": manifest.salt,
        "signature": msgspec.to_builtins(card.signature),
        "tokens": card.tokens,
        "nbytes": card.nbytes,
        "bits_per_value": card.bits_per_value if manifest.layers else None,
        "bytes": sizes(card),
        "identity": msgspec.to_builtins(manifest.identity),
        "layers": msgspec.to_builtins(manifest.layers),
        "states": msgspec.to_builtins(manifest.states),
        "segments": [
            {
                "segment": run.segment,
                "start": run.start,
                "end": run.end,
                "codec": msgspec.to_builtins(run.codec),
                "allocation": msgspec.to_builtins(run.allocation),
                "state_bits": manifest.segments[run.segment].state_bits,
                "here": run.segment >= card.thin,
            }
            for run in manifest.runs
        ],
        "lineage": [msgspec.structs.asdict(hop) for hop in manifest.lineage],
    }


def sizes(card: CacheCard) -> dict[str, int]:
    """Bytes by kind; they add up to the file. Raises `CodecError` or the `CardError` family."""
    found = dict.fromkeys(("codes", "scales", "maps"), 0)  # a codec may have other kinds
    for run in card.manifest.runs:
        if run.segment < card.thin:
            continue
        codec = from_record(run.codec)
        for number, layer in enumerate(card.manifest.layers):
            shape, nbytes = Shape.of(layer, run.held(number)), bytes_of(card, number, run)
            for kind, part in codec.parts(shape, nbytes).items():
                found[kind] = found.get(kind, 0) + part
    if card.manifest.states:
        found["states"] = card.state_bytes
    return {**found, "ids": 4 * card.tokens, "header": card.header_bytes, "total": card.nbytes}


def bytes_of(card: CacheCard, layer: int, run: Run) -> int:
    """Bytes of one run in one layer; 0 where the card is thin."""
    if run.spans is None:
        return card.blob_bytes[layer][run.segment]
    return run.spans[layer].stop - run.spans[layer].start if run.segment >= card.thin else 0


def token_bits(card: CacheCard) -> TokenBits | None:
    """What the allocator gave each token; None where that were no numbers, or over `MOST_NUMBERS`.

    A layer's add up to its bytes, see `Codec.token_bits`. Nothing is decoded, no profile is needed.
    Raises `CodecError` or the `CardError` family.
    """
    layers = card.manifest.layers
    if not 0 < card.tokens * len(layers) <= MOST_NUMBERS:
        return None
    bits = TokenBits(*(np.zeros((len(layers), card.tokens), np.float32) for _ in "kv"))
    read = lru_cache(maxsize=4)(card.blob)  # the parts of a compacted segment are in one
    runs = [run for run in card.manifest.runs if run.segment >= card.thin]
    codecs = [(from_record(run.codec), blobs_of(card, run, read)) for run in runs]
    for number, layer in enumerate(layers):
        for run, (codec, blobs) in zip(runs, codecs, strict=True):
            shape = Shape.of(layer, run.held(number))
            at = slice(run.end - shape.tokens, run.end)
            keys, values = codec.token_bits(next(blobs), shape)
            bits.keys[number, at] = keys / (shape.kv_heads * shape.head_dim)
            bits.values[number, at] = values / (shape.kv_heads * shape.v_head_dim)
    return bits


def mean_bits(card: CacheCard) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Encoded bits per value: of each token, mean over layers, ``[tokens]``; of each layer, mean
    over tokens, ``[layers]``; 0 where forgotten.

    There is never a number for every token and layer: a small file can name too many of both.
    """
    layers, runs = card.manifest.layers, card.manifest.runs
    steps, of_layer = np.zeros(card.tokens + 1), np.zeros(len(layers))
    for number, layer in enumerate(layers):
        width = layer.kv_heads * (layer.head_dim + layer.v_head_dim)
        for run in runs:
            bits, held = 8 * bytes_of(card, number, run) / width, run.held(number)
            steps[run.end - held] += bits / held
            steps[run.end] -= bits / held
            of_layer[number] += bits
    return steps.cumsum()[:-1] / max(1, len(layers)), of_layer / card.tokens
