"""Learned allocators: small networks over standardised inputs, with ReLU between layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkvshare.card.errors import ProfileError
from qkvshare.codecs import Allocator, BitMap, Demand
from qkvshare.hf.model.identity import identify
from qkvshare.profile import Profile
from qkvshare.registry import require_range

from .allocators import evenly, in_turn
from .features import Features, read_features

# Bits for the first chunk: more than any difference of widths.
_FIRST = 32


@dataclass(frozen=True)
class Learned(Allocator):
    """Base of allocators with a network of their name in ``profile``, see `training`."""

    profile: Profile | None = None

    widths: ClassVar[tuple[int, ...]]
    sizes: ClassVar[tuple[int, ...]]  # of the network's hidden layers

    def features(self, demand: Demand) -> Features:
        """Of the tokens that the layers hold. Raises `ProfileError` for another model's profile."""
        assert demand.ids is not None
        if self.profile is not None:
            self.profile.require(identify(demand.model).weights)
        found = read_features(demand.model, demand.ids)
        start = len(demand.ids) - max(at.tokens for at in demand.shapes)
        return Features(found.signals[start:], found.hidden[start:])

    def classify(self, inputs: Tensor, classes: int) -> Tensor:
        """Probabilities ``[tokens, classes]`` of ``inputs [tokens, n]``, float64.

        Raises `ProfileError` where there is no profile, or none for such inputs.
        """
        if self.profile is None:
            raise ProfileError(
                f"the allocator {self.name!r} is learned. Run python -m benchmarks train and pass "
                "what it wrote as the profile."
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
                "Run python -m benchmarks train with this model."
            )
        x = (inputs.float().cpu() - arrays["mean"]) / arrays["deviation"]
        for number in range(last + 1):
            x = nn.functional.linear(x, arrays[f"{number}.weight"], arrays[f"{number}.bias"])
            x = x if number == last else x.relu()
        return x.double().softmax(-1)

    def expected_width(self, inputs: Tensor) -> Tensor:
        """Bits ``[tokens]``, for ``inputs [tokens, n]``. Raises as `classify`."""
        chances = self.classify(inputs, len(self.widths))
        return chances @ torch.tensor(self.widths, dtype=chances.dtype)

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


@dataclass(frozen=True)
class Controller(Learned):
    """A small network reads the width off four signals of a token.

    After "Don't Waste Bits!" (arXiv:2604.04722): entropy, confidence, rarity and attention variance
    go into an MLP 4 → 128 → 128 → 4 over widths of 2, 4, 8 and 16 bits. Its average rate is fixed
    in training; to meet any budget at equal bytes, here the expected width of a token is moved up
    or down by the same number of bits for all.
    """

    name = "controller"
    widths = (2, 4, 8, 16)
    sizes = (128, 128)

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`, and `ProfileError` without a profile for it."""
        return self.in_order(demand, budget, self.expected_width(self.features(demand).signals))


@dataclass(frozen=True)
class ChunkRouter(Learned):
    """One decision for a chunk of tokens (MoQAE, arXiv:2506.07533).

    A router reads each token's hidden state and votes among experts of 16, 4 and 2 bits; the chunk
    follows its tokens, and the first chunk stays as exact as it can be. As in the paper's routing
    sharing, one decision serves all layers. The paper takes the majority; to meet any budget, here
    the mean of the expected widths orders the chunks.
    """

    chunk: int = 32

    name = "chunk-router"
    widths = (2, 4, 16)
    sizes = (64,)

    def __post_init__(self) -> None:
        """Raise `CodecError` for numbers that mean nothing."""
        require_range(self, "chunk")

    def allocate(self, demand: Demand, budget: int) -> BitMap:
        """Raises `BudgetError`, and `ProfileError` without a profile for it."""
        widths = self.expected_width(self.features(demand).hidden)
        means = [part.mean().expand(len(part)) for part in torch.split(widths, self.chunk)]
        if demand.sinks:  # the context begins here
            means[0] = means[0] + _FIRST
        return self.in_order(demand, budget, torch.cat(means))
