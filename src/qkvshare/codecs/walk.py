"""The way through the layers that encoder and decoder of ``transform`` both go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.rans import energies, weighted_sum
from .basis import Basis, PartBasis
from .entropy import SHIFT, Floats, Ints, classes, gain, shifted
from .means import PART, choose


@dataclass
class Walk:
    """What both know so far.

    Attributes:
        basis: the profile's.
        step: the base's step, as its exponent in 1/64 octave.
        known: decoded parts ``[tokens, columns]`` by layer and kind, from the base alone.
        activity: the sums of magnitudes ``[tokens]`` that the parts had.
        expected: and those they were expected to have, in 1/64.
        units: the steps of the layer's tokens, ``[tokens]``.
        means: what the card adds to the layer's means ``[columns]``, in 1/8 step, by kind.
    """

    basis: Basis
    step: int
    layer: int = 0
    exponents: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    activity: dict[tuple[int, int], Ints] = field(default_factory=dict)
    expected: dict[tuple[int, int], Ints] = field(default_factory=dict)
    tables: list[Ints] = field(default_factory=list)
    units: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    means: dict[int, Ints] = field(default_factory=dict)

    def enter(self, layer: int, exponents: Ints) -> None:
        """Go on to ``layer``, whose tokens have ``exponents``."""
        self.layer, self.exponents, self.means = layer, exponents, {}
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

    @property
    def unit(self) -> float:
        """The card's step."""
        return float(2.0 ** (self.step / 64))

    def predict(self, kind: int, tokens: int) -> Tensor:
        """``[tokens, columns]``."""
        told, own = self.means.get(kind), None
        if told is not None and told.any():
            steps = told.astype(np.float32) * np.float32(self.unit / PART)
            own = torch.from_numpy(_sum(steps, self.part(kind).back))
        return self.basis.predict(self.layer, kind, self.known, tokens, own)

    def left(self, kind: int, x: Tensor) -> Ints:
        """Means of what prediction leaves of ``x [tokens, columns]``, as far as they are worth
        telling; tokens that seem to be larger than others, or far outside, count for less."""
        part = self.part(kind)
        if len(x) == 0:
            return np.zeros(x.shape[1], np.int32)
        rows, tables = self.context(kind)
        gains = (rows - SHIFT + self.exponents).astype(np.float32)
        energy = np.empty(len(x), np.float32)
        energies(x.numpy(), part.mean.numpy(), energy)
        usual = np.minimum(4 * np.median(energy) / np.maximum(energy, np.float32(1e-30)), 1)
        weights = np.exp2(-gains / 2) * usual
        total = weights.sum(dtype=np.float64)
        if not 0 < total < np.inf:
            return np.zeros(x.shape[1], np.int32)
        shares = (weights / total).astype(np.float32)
        mean, at = _sum(shares, x) - part.mean.numpy(), 0
        for feature in self.basis.features(self.layer, kind, self.known):
            rest = part.predictor[at : at + feature.shape[1]]
            mean, at = mean - _sum(_sum(shares, feature), rest), at + feature.shape[1]
        steps = _sum(mean, part.forward) / np.float32(self.unit)
        tokens = 1 / float(np.square(shares).sum(dtype=np.float64))
        return choose(steps, tokens, tables[SHIFT])

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


def _sum(weights: Floats, rows: Tensor) -> Floats:
    out = np.empty(rows.shape[1], np.float32)
    weighted_sum(weights, rows.numpy(), out)
    return out
