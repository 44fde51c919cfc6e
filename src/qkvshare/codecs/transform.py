"""``transform``: predicted across layers, transformed, and entropy coded, with a profile's help.

A layer's keys and values, all heads side by side, are predicted from the two layers below as the
decoder knows them; what is left is taken to its principal axes, quantized with one step for all and
coded under distributions of the right scale. A token has a step of its own, 2**(exponent / 4)
times that of the card: token-level mixed precision. docs/codec-transform.md has the formulas.

Related: cross-layer prediction (AQUA-KV, arXiv:2501.19392), principal axes and entropy coding
(KVTC, arXiv:2511.01815), arithmetic coding of caches (CacheGen, arXiv:2310.07240).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..card.digest import Bytes
from ..card.errors import CardFormatError, CodecError, ProfileError
from ..kernels import rans
from ..profile import Profile
from ..scoring import Scorer
from . import streams
from .base import ENCODER_ONLY, BitCounts, leave
from .basis import Basis
from .basis_arrays import FARTHEST
from .entropy import DEAD, Floats, Ints
from .finite import require_finite
from .kinds import Stepped, Trimmable
from .layers import Into, LayerKV, Shape
from .predictor import Predictor
from .product import add as add_product
from .refining import add, refine, refined_classes

MOST = 4  # refinements
_POWER = 0.15
# Exponents are in quarters of an octave; a spread beyond two octaves would be trust in noise.
_SINK, _SPREAD = -16, 8


@dataclass(frozen=True)
class Transform(Stepped, Trimmable):
    """Needs the profile it was made with, at both ends.

    Attributes:
        profile: its digest; empty for the one at hand for the model.
        step: the base's step is ``2 ** (step / 64)``; None for one that fits the bytes asked for.
        refinements: how often the step is halved by data that `trim` can drop. They cost bytes, see
            docs/results/rate.md.
        scorer: tells which tokens later queries look at; None for capture's default.
        power: a token's step is its salience to this negative power, see `exponents`.
    """

    profile: str = ""
    step: int | None = None
    refinements: int = 0
    scorer: Scorer | None = field(default=None, metadata=ENCODER_ONLY)
    power: float = field(default=_POWER, metadata=ENCODER_ONLY)

    name = "transform"
    version = 2
    independent = False

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """With ``profile``, which this process then knows."""
        return cls(profile.keep())

    @property
    def basis(self) -> Basis:
        """What the profile says. Raises `ProfileError`."""
        return _basis(self.profile)

    def for_model(self, weights: str) -> Self:
        """With the profile at hand where it names none, which must be the model's."""
        profile = Profile.find(self.profile) if self.profile else Profile.at_hand(weights)
        if profile is None:
            raise ProfileError(
                "the codec 'transform' needs a profile of this model, and none is at hand. Make "
                "one with qkvshare calibrate, or take 'packed', which needs none."
            )
        profile.require(weights)
        return replace(self, profile=profile.keep())

    @property
    def reference(self) -> int:
        """The step that the profile was fitted at."""
        return self.basis.reference

    def at(self, step: int | None) -> Self:
        """The same with another step."""
        return replace(self, step=None if step is None else max(-FARTHEST, min(step, FARTHEST)))

    @property
    def allocation(self) -> str:
        """``smooth``, and the power unless it is the default."""
        return "smooth" if self.power == _POWER else f"smooth:power={self.power:g}"

    def exponents(self, salience: Tensor, sinks: int) -> Ints:
        """Finer where later queries look, in half octaves; the sinks get the finest.

        Reverse water-filling gives a token with more weight more bits, and a power well below 1/2
        allows for salience being a guess.
        """
        mean = salience.mean(0)
        wanted = -2 * self.power * torch.log2((mean / mean.mean()).clamp(min=1e-9))
        halves = (wanted - wanted.mean()).round()
        exponents = (2 * halves).clamp(-_SPREAD, _SPREAD).int()
        exponents[:sinks] = _SINK
        return exponents.cpu().numpy()

    def encode(
        self, layers: Iterable[LayerKV], exponents: Sequence[Ints] | None = None
    ) -> Iterator[Bytes]:
        """Layer after layer. Raises `CodecError`."""
        if self.step is None or not 0 <= self.refinements <= MOST:
            raise CodecError(
                f"transform has step {self.step} and {self.refinements} refinements; it needs a "
                f"step, which capture chooses, and 0 to {MOST} refinements."
            )
        state = Predictor(self.basis, self.step)
        for number, layer in enumerate(layers):
            tokens = layer.keys.shape[1]
            own = np.zeros(tokens, np.int32) if exponents is None else exponents[number]
            state.enter(number, own)
            coded = [
                self._encode_part(
                    state, kind, part.detach().float().cpu().transpose(0, 1).flatten(1)
                )
                for kind, part in enumerate((layer.keys, layer.values))
            ]
            levels = zip(*coded, strict=True)
            ordered = [one for level in levels for pair in zip(*level, strict=True) for one in pair]
            yield streams.join(own, ordered)

    def _encode_part(self, state: Predictor, kind: int, x: Tensor) -> list[list[streams.Stream]]:
        """Streams of the base, then of each refinement: one a chunk. ``x [tokens, columns]``."""
        basis, part, tokens = state.basis, state.part(kind), len(x)
        guess = state.predict(kind, tokens)
        z: Floats = ((x - part.center - guess) @ part.forward).numpy()
        values, out = np.empty(z.shape, np.int32), np.empty(z.shape, np.float32)
        rows, table = state.context(kind)
        activity, dead = np.empty(tokens, np.int32), np.float32(DEAD)
        points = basis.tables.points
        rans.quantize(z, rows, table, state.units, dead, points, values, out, activity)
        state.keep(kind, add_product(guess, torch.from_numpy(out), part.back))
        state.activity[state.layer, kind] = activity
        runs = streams.chunks(tokens)
        found = [[streams.write(values[at], rows[at], table, basis.tables) for at in runs]]
        for level in range(1, self.refinements + 1):
            units = state.units / np.float32(2**level)
            own = refined_classes(out, rows, table, level)
            more = refine(z, out, units, DEAD)
            fine, each = basis.refined, np.arange(tokens, dtype=np.int32)
            found.append(
                [streams.write(more[at], each[: at.stop - at.start], own[at], fine) for at in runs]
            )
            add(out, fine.points[own, more + rans.LARGEST] * units[:, None])
        return found

    def decode(
        self, blobs: Iterable[Bytes], into: Iterable[Into], then: Callable[[Into], None] = leave
    ) -> Iterator[Into]:
        """Raises `CardFormatError` or `ProfileError`."""
        if self.step is None or abs(self.step) > FARTHEST or not 0 <= self.refinements <= MOST:
            raise CardFormatError(
                f"codec 'transform' has step {self.step} and {self.refinements} refinements, "
                f"expected a number and 0 to {MOST}."
            )
        basis = self.basis
        state, count = Predictor(basis, self.step), 0
        for number, (blob, layer) in enumerate(zip(blobs, into, strict=True)):
            if number == len(basis.parts):
                raise streams.bad(f"more layers than the profile has, which are {number}")
            shape = layer.shape
            columns = [shape.kv_heads * dim for dim in (shape.head_dim, shape.v_head_dim)]
            has = [len(part.mean) for part in basis.parts[number]]
            if columns != has:
                raise streams.bad(f"{columns} columns in layer {number}, the profile has {has}")
            exponents, levels = streams.split(blob, shape.tokens, 1 + self.refinements)
            state.enter(number, exponents)
            out = [np.empty((shape.tokens, wide), np.float32) for wide in columns]
            fine = [np.zeros_like(part) for part in out] if len(levels) > 1 else []
            _open(state, levels, out, fine)
            for kind, target in enumerate((layer.keys, layer.values)):
                part, found = state.part(kind), state.predict(kind, shape.tokens)
                add_product(found, torch.from_numpy(out[kind]), part.back)
                state.keep(kind, found)
                if fine:
                    add_product(found, torch.from_numpy(fine[kind]), part.back)
                require_finite(found.add_(part.center), target.dtype, self.name)
                rows = found.view(shape.tokens, shape.kv_heads, -1)
                target.copy_(rows.transpose(0, 1))
            then(layer)
            yield layer
            count = number + 1
        if count != len(basis.parts):
            raise streams.bad(f"{count} layers, the profile has {len(basis.parts)}")

    def level_bytes(self, blob: Bytes, shape: Shape) -> list[int]:
        """Bytes of each refinement."""
        return streams.level_bytes(blob, shape.tokens, 1 + self.refinements)

    def drop(self, blob: Bytes, shape: Shape, keep: int) -> Bytes:
        """The blob with its first ``keep`` refinements."""
        return streams.drop(blob, shape.tokens, 1 + self.refinements, keep)

    def token_bits(self, blob: Bytes, shape: Shape) -> tuple[BitCounts, BitCounts]:
        """A chunk's bytes are known; `streams.token_bits` estimates how tokens share them."""
        if not 0 <= self.refinements <= MOST:
            raise streams.bad(f"{self.refinements} refinements, expected 0 to {MOST}")
        return streams.token_bits(blob, shape, 1 + self.refinements)


@lru_cache(maxsize=4)
def _basis(digest: str) -> Basis:
    return Basis.of(Profile.find(digest))


def _open(
    state: Predictor, levels: list[list[streams.Stream]], out: list[Floats], fine: list[Floats]
) -> None:
    """Keys, then values: the base into ``out``, what is added to it into ``fine``."""
    basis, runs = state.basis, streams.chunks(len(state.units))
    for kind, own in enumerate(out):
        rows, table = state.context(kind)
        base, activity = zip(levels[0][kind::2], runs, strict=True), np.empty(len(own), np.int32)
        streams.read(base, rows, table, basis.tables, state.units, own, activity)
        state.activity[state.layer, kind] = activity
        so_far = own.copy() if len(levels) > 1 else own
        for level, pairs in enumerate(levels[1:], 1):
            found, more = refined_classes(so_far, rows, table, level), np.empty_like(own)
            units, unused = state.units / np.float32(2**level), np.empty_like(activity)
            each = np.arange(len(own), dtype=np.int32)
            added = zip(pairs[kind::2], runs, strict=True)
            streams.read(added, each, found, basis.refined, units, more, unused)
            add(so_far, more)
        if len(levels) > 1:
            np.subtract(so_far, own, out=fine[kind])
