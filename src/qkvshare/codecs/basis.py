"""What the transform codec knows of a model, from a profile: predictors and bases of all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..card.errors import ProfileError
from ..profile import Profile
from .entropy import Tables

KINDS = ("keys", "values")


@dataclass(frozen=True, eq=False)
class PartBasis:
    """How one layer's keys, or values, are predicted and transformed; columns are heads side by
    side.

    Attributes:
        predictor: ``[features, columns]``, see `Basis.features`.
        mean: ``[columns]``, what is predicted where all features are 0.
        back: from coefficients to columns, ``[columns, columns]``.
        scales: int16 ``[5, columns]``, see `entropy.classes`.
    """

    predictor: Tensor
    mean: Tensor
    back: Tensor
    scales: npt.NDArray[np.int16]

    @cached_property
    def forward(self) -> Tensor:
        """From columns to coefficients; only the encoder needs it."""
        inverse: Tensor = torch.linalg.inv(self.back.double())
        return inverse.float()


@dataclass(frozen=True, eq=False)
class Basis:
    """All layers' bases, the tables, and the step that they were fitted at; ``refined`` are the
    tables of refinements.

    Attributes:
        parts: a pair for each layer.
        sources: int ``[layers, 2]``: up to two earlier layers that predict this one, or -1.
        reference: the step's exponent, in 1/64 octave.
    """

    parts: list[tuple[PartBasis, PartBasis]]
    sources: list[tuple[int, ...]]
    reference: int
    tables: Tables
    refined: Tables

    @classmethod
    def of(cls, profile: Profile) -> Basis:
        """Raises `ProfileError` for a profile without one."""
        arrays = profile.arrays
        if not profile.has_basis:
            raise ProfileError(
                "the profile has no basis for the codec 'transform'. Calibrate again with this "
                "package."
            )
        sources = [tuple(int(x) for x in row if x >= 0) for row in arrays["transform.sources"]]
        parts = [
            (_part(arrays, n, "keys"), _part(arrays, n, "values")) for n in range(len(sources))
        ]
        tables = Tables(
            arrays["transform.freq"].astype(np.int32),
            arrays["transform.points"],
            arrays["transform.expected"].astype(np.int32),
        )
        refined = Tables(
            arrays["transform.refined.freq"].astype(np.int32),
            arrays["transform.refined.points"],
            np.zeros(len(arrays["transform.refined.freq"]), np.int32),
        )
        return cls(parts, sources, int(arrays["transform.reference"][0]), tables, refined)

    def features(
        self, layer: int, kind: int, known: Mapping[tuple[int, int], Tensor]
    ) -> list[Tensor]:
        """What predicts a part, each ``[tokens, columns]``: sources' keys and values, and for
        values the layer's own keys before them. ``known`` by layer and kind, as decoded."""
        own = [known[layer, 0]] if kind else []
        return own + [known[source, at] for source in self.sources[layer] for at in (0, 1)]

    def predict(
        self,
        layer: int,
        kind: int,
        known: Mapping[tuple[int, int], Tensor],
        tokens: int,
        own: Tensor | None = None,
    ) -> Tensor:
        """``[tokens, columns]``, float32: the same bits with any number of threads. ``own
        [columns]`` is added to the mean."""
        part, at = self.parts[layer][kind], 0
        given = self.features(layer, kind, known)
        mean = part.mean if own is None else part.mean + own
        out = mean.expand(tokens, -1).clone()
        for feature in given:
            out.addmm_(feature, part.predictor[at : at + feature.shape[1]])
            at += feature.shape[1]
        return out


def _part(arrays: Mapping[str, npt.NDArray[Any]], layer: int, kind: str) -> PartBasis:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"transform.{layer}.{kind}.{name}"].astype(np.float32))

    scales = arrays[f"transform.{layer}.{kind}.scales"].astype(np.int16)
    return PartBasis(tensor("predictor"), tensor("mean"), tensor("back"), scales)
