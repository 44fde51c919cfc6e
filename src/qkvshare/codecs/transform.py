"""``transform``: predicted across layers, transformed, and entropy coded, with a profile's help.

A layer's keys and values, all heads side by side, are predicted from the two layers below as the
decoder knows them; what is left is taken to its principal axes, quantized with one step for all and
coded under distributions of the right scale. A token has a step of its own, 2**(exponent / 4)
times that of the card: token-level mixed precision. docs/codec-transform.md has the formulas.

Related: cross-layer prediction (AQUA-KV, arXiv:2501.19392), principal axes and entropy coding
(KVTC, arXiv:2511.01815), arithmetic coding of caches (CacheGen, arXiv:2310.07240).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CardFormatError, CodecError
from ..kernels import rans
from ..profile import Profile
from .base import Codec, LayerKV, Shape
from .basis import Basis, PartBasis
from .bits import BitMap
from .entropy import SHIFT, Ints, Tables, classes, exact_table, gain, shifted

DEAD = 0.1  # part of a step that is rounded down besides the half
CHUNK = 512  # tokens that are coded together; chunks are opened in parallel
# Exponents of tokens' steps, in quarters of an octave.
FINEST, COARSEST = -24, 12
_FAR = 64 * 40  # of the card's step


@dataclass(frozen=True)
class Transform(Codec):
    """Needs the profile it was made with, at both ends.

    Attributes:
        profile: its digest; empty for the one at hand for the model.
        step: the step is ``2 ** (step / 64)``; None for one that fits the budget.
    """

    profile: str = ""
    step: int | None = None

    name = "transform"

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """With ``profile``, which this process then knows."""
        return cls(profile.keep())

    @property
    def basis(self) -> Basis:
        """What the profile says. Raises `ProfileError`."""
        return _basis(self.profile)

    def at(self, step: int) -> Self:
        """The same with another step."""
        return replace(self, step=max(-_FAR, min(step, _FAR)))

    def encode(
        self,
        layers: Iterable[LayerKV],
        bits: BitMap | None = None,
        exponents: Sequence[Ints] | None = None,
    ) -> Iterator[Bytes]:
        """Layer after layer. ``exponents [tokens]`` of each layer; by default 0. Raises
        `CodecError`."""
        if self.step is None:
            raise CodecError("transform needs a step; capture chooses it.")
        walk = _Walk(self.basis, self.step)
        for number, layer in enumerate(layers):
            tokens = layer.keys.shape[1]
            own = np.zeros(tokens, np.int32) if exponents is None else exponents[number]
            streams = []
            walk.enter(number, own)
            for kind, part in enumerate((layer.keys, layer.values)):
                x = part.detach().float().cpu().transpose(0, 1).flatten(1)
                guess = walk.predict(kind, tokens)
                z = ((x - guess) @ walk.part(kind).forward).numpy()
                values, out = np.empty(z.shape, np.int32), np.empty(z.shape, np.float32)
                rows, table = walk.context(kind)
                activity = np.empty(tokens, np.int32)
                dead, points = np.float32(DEAD), walk.basis.tables.points
                rans.quantize(z, rows, table, walk.units, dead, points, values, out, activity)
                walk.known[number, kind] = guess.addmm_(torch.from_numpy(out), walk.part(kind).back)
                walk.activity[number, kind] = activity
                streams.append([_code(walk, values, rows, table, at) for at in _chunks(tokens)])
            yield _join(
                _code_exponents(own), [one for pair in zip(*streams, strict=True) for one in pair]
            )

    def decode(
        self, blobs: Iterable[Bytes], shapes: Sequence[Shape], dtype: torch.dtype
    ) -> Iterator[LayerKV]:
        """Raises `CardFormatError` or `ProfileError`."""
        if self.step is None or abs(self.step) > _FAR:
            raise CardFormatError(f"codec 'transform' has step {self.step}, expected a number.")
        basis = self.basis
        walk = _Walk(basis, self.step)
        if len(basis.parts) != len(shapes):
            raise _bad(f"{len(shapes)} layers, the profile has {len(basis.parts)}")
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for number, (blob, shape) in enumerate(zip(blobs, shapes, strict=True)):
                columns = [shape.kv_heads * dim for dim in (shape.head_dim, shape.v_head_dim)]
                found = [len(part.mean) for part in basis.parts[number]]
                if columns != found:
                    raise _bad(f"{columns} columns in layer {number}, the profile has {found}")
                exponents, streams = _split(blob, shape.tokens)
                walk.enter(number, exponents)
                out = [np.empty((shape.tokens, wide), np.float32) for wide in columns]
                activity = [np.empty(shape.tokens, np.int32) for _ in columns]
                walk.activity |= {(number, kind): one for kind, one in enumerate(activity)}
                jobs = [
                    pool.submit(_open, walk, at, streams[2 * n : 2 * n + 2], out, activity)
                    for n, at in enumerate(_chunks(shape.tokens))
                ]
                if not all([job.result() for job in jobs]):
                    raise _bad(f"data in layer {number} that does not end where it should")
                parts = []
                for kind, dim in enumerate((shape.head_dim, shape.v_head_dim)):
                    guess = walk.predict(kind, shape.tokens)
                    guess.addmm_(torch.from_numpy(out[kind]), walk.part(kind).back)
                    walk.known[number, kind] = guess
                    heads = guess.view(shape.tokens, shape.kv_heads, dim).transpose(0, 1)
                    parts.append(heads.to(dtype, memory_format=torch.contiguous_format, copy=True))
                yield LayerKV(*parts)

    def parts(self, shape: Shape, nbytes: int) -> dict[str, int]:
        """Everything is codes."""
        return {"codes": nbytes}


@lru_cache(maxsize=4)
def _basis(digest: str) -> Basis:
    return Basis.of(Profile.find(digest))


@dataclass
class _Walk:
    """What encoder and decoder both know on their way through the layers.

    ``known`` are decoded parts ``[tokens, columns]``, ``activity`` and ``expected`` the sums of
    magnitudes ``[tokens]`` that the parts had and were expected to have.
    """

    basis: Basis
    step: int
    layer: int = 0
    exponents: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    activity: dict[tuple[int, int], Ints] = field(default_factory=dict)
    expected: dict[tuple[int, int], Ints] = field(default_factory=dict)
    tables: list[Ints] = field(default_factory=list)

    def enter(self, layer: int, exponents: Ints) -> None:
        """Go on to ``layer``, whose tokens have ``exponents``."""
        self.layer, self.exponents = layer, exponents
        needed = {at for later in self.basis.sources[layer:] for at in later}
        stores: tuple[dict[tuple[int, int], Any], ...] = self.known, self.activity, self.expected
        for store in stores:
            for key in [key for key in store if key[0] not in needed]:
                del store[key]
        self.units = np.exp2(self.step / 64 + exponents / 4).astype(np.float32)
        self.tables = []
        for kind, part in enumerate(self.basis.parts[layer]):
            table = shifted(classes(part.scales, self.step, self.basis.reference))
            self.tables.append(table)
            mean = self.basis.tables.expected[table].sum(1)
            self.expected[layer, kind] = mean[SHIFT - exponents].astype(np.int32)

    def part(self, kind: int) -> PartBasis:
        """Of this layer."""
        return self.basis.parts[self.layer][kind]

    def predict(self, kind: int, tokens: int) -> Tensor:
        """``[tokens, columns]``."""
        return self.basis.predict(self.layer, kind, self.known, tokens)

    def context(self, kind: int, at: slice = slice(None)) -> tuple[Ints, Ints]:
        """Which row of the tables each token has, and the tables of this part."""
        sources = self.basis.sources[self.layer]
        past = [(self.layer, 0)] if kind else [(at, 0) for at in sources[:1]]
        past += [(at, 1) for at in sources[:1]]
        shift = -self.exponents[at]
        if past:
            stores = self.activity, self.expected
            seen, mean = (np.stack([of[one][at] for one in past]).sum(0) for of in stores)
            shift = shift + gain(seen, mean)
        rows = SHIFT + np.clip(shift, -SHIFT, SHIFT)
        return rows.astype(np.int32), self.tables[kind]


def _chunks(tokens: int) -> list[slice]:
    return [slice(at, min(at + CHUNK, tokens)) for at in range(0, tokens, CHUNK)]


def _code(walk: _Walk, values: Ints, rows: Ints, table: Ints, at: slice) -> tuple[Bytes, Bytes]:
    """States and words of one chunk, and its escapes."""
    freq, start = walk.basis.tables.freq, walk.basis.tables.start
    return _run(values[at], rows[at], table, freq, start)


def _run(values: Ints, rows: Ints, table: Ints, freq: Ints, start: Ints) -> tuple[Bytes, Bytes]:
    words, escapes = np.empty(values.size, np.uint16), np.empty(5 * values.size, np.uint8)
    first, far, states = rans.encode(values, rows, table, freq, start, words, escapes)
    codes = np.concatenate([states.astype("<u4").view(np.uint8), words[first:].view(np.uint8)])
    return codes, escapes[far:].copy()


def _open(walk: _Walk, at: slice, streams: Any, out: Any, activity: Any) -> bool:
    """Decode keys, then values, of one chunk into ``out`` and ``activity``."""
    tables = walk.basis.tables
    for kind, (codes, escapes) in enumerate(streams):
        rows, table = walk.context(kind, at)
        words = np.ascontiguousarray(codes[16:]).view("<u2")
        states = np.ascontiguousarray(codes[:16]).view("<u4").astype(np.uint64)
        if not rans.decode(
            words, states, escapes, rows, table, tables.lookup, tables.points,
            walk.units[at], out[kind][at], activity[kind][at],
        ):  # fmt: skip
            return False
    return True


def _code_exponents(exponents: Ints) -> Bytes:
    """How many different ones, each with its frequency, then the codes."""
    freq = exact_table(exponents)
    used = np.flatnonzero(freq[0])
    head = np.concatenate([used, freq[0][used]]).astype("<u2").view(np.uint8)
    start = (np.cumsum(freq, axis=1) - freq).astype(np.int32)
    rows, table = np.zeros(len(exponents), np.int32), np.zeros((1, 1), np.int32)
    codes, _ = _run(exponents[:, None].astype(np.int32), rows, table, freq, start)
    return np.concatenate([np.array([len(used)], np.uint8), head, codes[:4], codes[16:]])


def _read_exponents(data: Bytes, tokens: int) -> Ints:
    used = int(data[0]) if len(data) else 0
    if used == 0 or len(data) < 1 + 4 * used + 4 or (len(data) - 1) % 2:
        raise _bad("exponents of a wrong size")
    symbols, counts = np.split(np.ascontiguousarray(data[1 : 1 + 4 * used]).view("<u2"), 2)
    wrong = (symbols < rans.LARGEST + FINEST) | (symbols > rans.LARGEST + COARSEST)
    if (
        wrong.any()
        or counts.sum() != rans.TOTAL
        or not counts.all()
        or (np.diff(symbols.astype(int)) <= 0).any()
    ):
        raise _bad("exponents out of range")
    freq = np.zeros((1, rans.SYMBOLS), np.int32)
    freq[0, symbols] = counts
    points = (np.arange(rans.SYMBOLS, dtype=np.float32) - rans.LARGEST)[None]
    tables = Tables(freq, points, np.zeros(1, np.int32))
    rest = np.ascontiguousarray(data[1 + 4 * used :])
    states = np.full(4, 1 << 16, np.uint64)
    states[0] = rest[:4].view("<u4")[0]
    out, activity = np.empty((tokens, 1), np.float32), np.empty(tokens, np.int32)
    rows, table = np.zeros(tokens, np.int32), np.zeros((1, 1), np.int32)
    ones, none = np.ones(tokens, np.float32), np.zeros(0, np.uint8)
    words = rest[4:].view("<u2")
    if not rans.decode(
        words, states, none, rows, table, tables.lookup, points, ones, out, activity
    ):
        raise _bad("exponents that do not end where they should")
    return out[:, 0].astype(np.int32)


def _join(exponents: Bytes, streams: list[tuple[Bytes, Bytes]]) -> Bytes:
    """Sizes, exponents, then chunk after chunk, keys before values, codes before escapes."""
    sizes = [len(exponents), *(len(part) for pair in streams for part in pair)]
    head = np.frombuffer(struct.pack(f"<{len(sizes)}I", *sizes), np.uint8)
    return np.concatenate([head, exponents, *(part for pair in streams for part in pair)])


def _split(blob: Bytes, tokens: int) -> tuple[Ints, list[tuple[Bytes, Bytes]]]:
    count = 1 + 4 * len(_chunks(tokens))
    if len(blob) < 4 * count:
        raise _bad(f"{len(blob)} bytes in a layer, expected at least {4 * count}")
    sizes = np.ascontiguousarray(blob[: 4 * count]).view("<u4").astype(np.int64)
    if 4 * count + sizes.sum() != len(blob):
        raise _bad(f"{len(blob)} bytes in a layer, expected {4 * count + sizes.sum()}")
    cuts = 4 * count + np.cumsum(sizes)
    parts = [blob[end - size : end] for end, size in zip(cuts, sizes, strict=True)]
    pairs = list(zip(parts[1::2], parts[2::2], strict=True))
    if any(len(codes) < 16 or len(codes) % 2 for codes, _ in pairs):
        raise _bad("a stream of a wrong size")
    return _read_exponents(parts[0], tokens), pairs


def _bad(found: str) -> CardFormatError:
    return CardFormatError(
        f"a layer encoded by 'transform' has {found}. The card is damaged or was assembled by hand."
    )
