"""The state that encoder and decoder of ``transform`` both keep on their way through the layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .basis import Basis, PartBasis
from .entropy import SHIFT, Ints, classes, gain, shifted


@dataclass
class Predictor:
    """What both know so far; it predicts the next layer.

    Attributes:
        basis: the profile's.
        step: the base's step, as its exponent in 1/64 octave.
        known: decoded parts by layer, from the base alone, see `Basis.predict`.
        activity: the sums of magnitudes ``[tokens]`` that the parts had.
        expected: and those they were expected to have, in 1/64.
        units: the steps of the layer's tokens, ``[tokens]``.
    """

    basis: Basis
    step: int
    layer: int = 0
    exponents: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    known: dict[int, Tensor] = field(default_factory=dict)
    activity: dict[tuple[int, int], Ints] = field(default_factory=dict)
    expected: dict[tuple[int, int], Ints] = field(default_factory=dict)
    tables: list[Ints] = field(default_factory=list)
    units: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def enter(self, layer: int, exponents: Ints) -> None:
        """Go on to ``layer``, whose tokens have ``exponents``."""
        self.layer, self.exponents = layer, exponents
        needed = {at for later in self.basis.sources[layer:] for at in later}
        self.known = {key: rows for key, rows in self.known.items() if key in needed}
        for store in (self.activity, self.expected):
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
        """``[tokens, columns]``, less the part's center."""
        return self.basis.predict(self.layer, kind, self.known, tokens)

    def keep(self, kind: int, decoded: Tensor) -> None:
        """``decoded [tokens, columns]``, less the part's center, for later predictions."""
        if not kind:
            wide = sum(len(part.mean) for part in self.basis.parts[self.layer])
            self.known[self.layer] = decoded.new_empty(len(decoded), wide, dtype=torch.bfloat16)
        columns = len(self.part(0).mean)
        self.known[self.layer][:, columns if kind else 0 :][:, : decoded.shape[1]] = decoded

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
