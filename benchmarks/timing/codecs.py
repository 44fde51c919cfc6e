"""How fast a codec encodes and decodes a real cache, in memory, layer after layer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qkvshare.codecs import Codec, decode_runs
from qkvshare.hf.capture.capture import make_card
from qkvshare.hf.capture.reading import read
from qkvshare.hf.capture.strategy import scorer_of
from qkvshare.hf.model.identity import identify


@dataclass(frozen=True)
class CodecTiming:
    """Milliseconds of each round, for a cache of ``values`` numbers; encoding spends bits, too."""

    codec: Codec
    context_tokens: int
    values: int
    bits_per_value: float
    encode: list[float]
    decode: list[float]


def measure_codecs(
    model: Any, ids: Sequence[int], lengths: Sequence[int], codecs: Sequence[Codec], rounds: int
) -> Iterator[CodecTiming]:
    """Encode and decode in turn; the first round warms up. Codecs at their own default rates."""
    identity = identify(model)
    for length in lengths:
        for codec in codecs:
            scorer = scorer_of(codec)
            state = read(model, ids[:length], [] if scorer is None else [scorer])
            encode: list[float] = []
            decode: list[float] = []
            for number in range(rounds + 1):
                start = time.perf_counter()
                card = make_card(state, identity, codec)
                middle = time.perf_counter()
                for _ in decode_runs(card)[0]:
                    pass
                end = time.perf_counter()
                if number:
                    encode.append(1000 * (middle - start))
                    decode.append(1000 * (end - middle))
            yield CodecTiming(codec, length, card.values, card.bits_per_value, encode, decode)
