"""What the transform codec knows of a model, from a profile: predictors and bases of all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..card.errors import ProfileError
from ..profile import Profile
from .basis_arrays import check_arrays
from .entropy import Tables
from .product import summed


@dataclass(frozen=True, eq=False)
class PartBasis:
    """How one layer's keys, or values, are predicted and transformed; columns are heads side by
    side.

    Attributes:
        predictor: ``[features, columns]``, see `Basis.predict`.
        mean: ``[columns]``, what is predicted where all features are 0.
        back: from coefficients to columns, ``[columns, columns]``.
        scales: int16 ``[5, columns]``, see `entropy.classes`.
        center: ``[columns]``, what is predicted where all features are at their centers.
    """

    predictor: Tensor
    mean: Tensor
    back: Tensor
    scales: npt.NDArray[np.int16]
    center: Tensor

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
        """Raises `ProfileError` for a profile without one, or with one that cannot be."""
        arrays = profile.arrays
        if not profile.has_basis:
            raise ProfileError(
                "the profile has no basis for the codec 'transform'. Calibrate again with this "
                "package."
            )
        check_arrays(arrays)
        sources = [tuple(int(x) for x in row if x >= 0) for row in arrays["transform.sources"]]
        parts: list[tuple[PartBasis, PartBasis]] = []
        for number, own in enumerate(sources):
            centers = [part.center.numpy() for source in own for part in parts[source]]
            keys = _part(arrays, number, "keys", centers)
            parts.append((keys, _part(arrays, number, "values", [keys.center.numpy(), *centers])))
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

    def predict(self, layer: int, kind: int, known: Mapping[int, Tensor], tokens: int) -> Tensor:
        """``[tokens, columns]``, float32, less the part's center.

        From bfloat16 ``known[layer] [tokens, columns of both parts]``, as decoded and less their
        centers: values from the layer's own keys, and both from the sources' keys and values.
        """
        part, columns = self.parts[layer][kind], len(self.parts[layer][0].mean)
        given = [known[layer][:, :columns]] if kind else []
        given += [known[source] for source in self.sources[layer]]
        if not given:
            return torch.zeros(tokens, columns)
        rows = torch.split(part.predictor, [feature.shape[1] for feature in given])
        return summed(zip(given, rows, strict=True))


def _part(
    arrays: Mapping[str, npt.NDArray[Any]],
    layer: int,
    kind: str,
    centers: Sequence[npt.NDArray[Any]],
) -> PartBasis:
    """``centers`` of the features. A prediction is of what features differ from theirs by, since
    bfloat16 would lose that in a large constant."""

    def array(name: str) -> npt.NDArray[Any]:
        return arrays[f"transform.{layer}.{kind}.{name}"].astype(np.float32)

    predictor, mean = array("predictor"), array("mean")
    features = np.concatenate([np.zeros(0, np.float32), *centers])
    # Not a product of matrices, whose bits depend on how many threads it has.
    center = mean + np.einsum("f,fc->c", features, predictor)
    scales = arrays[f"transform.{layer}.{kind}.scales"].astype(np.int16)
    return PartBasis(
        torch.from_numpy(predictor).bfloat16(),
        torch.from_numpy(mean),
        torch.from_numpy(array("back")),
        scales,
        torch.from_numpy(center),
    )
