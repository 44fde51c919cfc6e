"""Learned allocators: small networks over standardised inputs, with ReLU between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..card.errors import ProfileError
from ..codecs.bits import BitMap
from ..profile import Profile
from .base import Allocator, Demand, evenly, in_turn

_EPOCHS, _BATCH, _RATE, _DECAY = 40, 512, 1e-3, 1e-2


@dataclass(frozen=True)
class Learned(Allocator):
    """Base of allocators with a network of their name in ``profile``; see `Demand.features`."""

    profile: Profile | None = None

    def classify(self, inputs: Tensor, classes: int) -> Tensor:
        """Probabilities ``[tokens, classes]`` of ``inputs [tokens, n]``, float64.

        Raises `ProfileError` where there is no profile, or none for such inputs.
        """
        if self.profile is None:
            raise ProfileError(
                f"the allocator {self.name!r} is learned. Run qkvshare calibrate and pass what it "
                "wrote as the profile."
            )
        arrays = {
            key.removeprefix(f"{self.name}."): torch.from_numpy(array)
            for key, array in self.profile.arrays.items()
            if key.startswith(f"{self.name}.")
        }
        last = sum(key.endswith(".weight") for key in arrays) - 1
        if not _fits(arrays, inputs.shape[1], last + 1, classes):
            raise ProfileError(
                f"the profile has no {self.name!r} for inputs of {inputs.shape[1]} numbers. "
                "Run qkvshare calibrate with this model."
            )
        x = (inputs.float().cpu() - arrays["mean"]) / arrays["deviation"]
        for number in range(last + 1):
            x = nn.functional.linear(x, arrays[f"{number}.weight"], arrays[f"{number}.bias"])
            x = x if number == last else x.relu()
        return x.double().softmax(-1)

    def in_order(self, demand: Demand, budget: int, widths: Tensor) -> BitMap:
        """Spend ``budget`` so that tokens are as many bits apart as ``widths [tokens]`` are.

        Raises `BudgetError`.
        """
        lead = 16.0**widths
        # Sliding layers hold the last tokens.
        worth = [
            (lead[len(lead) - at.tokens :] * evenly(at.tokens)).expand(2, at.kv_heads, -1)
            for at in demand.shapes
        ]
        return in_turn(demand, budget, worth)


def _fits(arrays: Mapping[str, Tensor], inputs: int, layers: int, classes: int) -> bool:
    """Whether ``arrays`` are a network, whoever made them: float32, finite, of fitting shapes."""
    shapes: dict[str, tuple[int, ...]] = {"mean": (inputs,), "deviation": (inputs,)}
    wide = inputs
    for number in range(layers):
        bias = arrays.get(f"{number}.bias")
        out = classes if number == layers - 1 or bias is None else len(bias)
        shapes |= {f"{number}.weight": (out, wide), f"{number}.bias": (out,)}
        wide = out
    found = {key: tuple(at.shape) for key, at in arrays.items()}
    plain = all(at.dtype == torch.float32 and at.isfinite().all() for at in arrays.values())
    return layers > 0 and shapes == found and plain


def expected_width(chances: Tensor, widths: Sequence[int]) -> Tensor:
    """Bits ``[tokens]``."""
    return chances @ torch.tensor(widths, dtype=chances.dtype)


def train(
    name: str, inputs: Tensor, labels: Tensor, sizes: Sequence[int], classes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Fit a network to ``labels [tokens]`` by cross entropy; arrays for `Learned.classify`."""
    mean, deviation = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    x = (inputs - mean) / deviation
    widths = [x.shape[1], *sizes, classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(one, two) for one, two in pairwise(widths)]
        optimizer = torch.optim.AdamW(
            [part for layer in layers for part in layer.parameters()], _RATE, weight_decay=_DECAY
        )
        for _ in range(_EPOCHS):
            for batch in torch.split(torch.randperm(len(x)), _BATCH):
                out = x[batch]
                for layer in layers[:-1]:
                    out = layer(out).relu()
                loss = nn.functional.cross_entropy(layers[-1](out), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    arrays = {"mean": mean, "deviation": deviation}
    for number, layer in enumerate(layers):
        arrays |= {f"{number}.weight": layer.weight.detach(), f"{number}.bias": layer.bias.detach()}
    return {f"{name}.{key}": value.float().numpy().copy() for key, value in arrays.items()}
