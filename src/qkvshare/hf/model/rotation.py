"""What a model does to its keys at some positions: angles, and the model's own function.

Nearly every model rotates the two halves of a head, and its function makes five copies of the keys
for that; where a trial shows this to be so, they are rotated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.native import fits, native, numbers_of
from ...kernels.rotation import rotate_pairs

Function = Callable[..., Any]  # the model's ``apply_rotary_pos_emb``


class Angles(NamedTuple):
    """Cosines and sines of positions, ``[1, tokens, rotary]``."""

    cos: Tensor
    sin: Tensor
    halves: tuple[Tensor, Tensor] | None  # ``[tokens, rotary / 2]``, where both halves are the same

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> Angles:
        """With their halves, if those are the same."""
        both = [part[0].chunk(2, -1) for part in (cos, sin)]
        if cos.shape[-1] % 2 or not all(torch.equal(*halves) for halves in both):
            return cls(cos, sin, None)
        return cls(cos, sin, (both[0][0].contiguous(), both[1][0].contiguous()))

    @classmethod
    def join(cls, pages: list[Angles]) -> Angles:
        """One after the other."""
        cos, sin = torch.cat([at.cos for at in pages], 1), torch.cat([at.sin for at in pages], 1)
        return cls.of(cos, sin)

    def part(self, at: range) -> Angles:
        """Of some of the positions; a view."""
        some = slice(at.start, at.stop)
        halves = None if self.halves is None else (self.halves[0][some], self.halves[1][some])
        return Angles(self.cos[:, some], self.sin[:, some], halves)

    def inverse(self) -> Angles:
        """What takes keys back."""
        scale = (self.cos.square() + self.sin.square())[:, :1]  # the attention scaling's square
        return Angles.of(self.cos / scale, -self.sin / scale)


@dataclass(frozen=True)
class Rotation:
    """Angles of a run of positions, and what the model does with them.

    Attributes:
        function: the model's own.
        halves: whether it rotates number ``i`` of a head with number ``i + head_dim / 2``.
        dim: how many numbers of a head it takes; the others stay.
    """

    function: Function
    of: Angles
    halves: bool
    dim: int

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``[tokens, head_dim / 2]``, where `halves` are rotated alike."""
        return self.of.halves if self.halves else None

    def __call__(self, keys: Tensor) -> Tensor:
        """Rotate ``keys [kv_heads, tokens, head_dim]`` in place; also returned."""
        x = keys.float()
        if self.angles is None:
            turned_keys = _apply(self.function, x[None, ..., : self.dim], self.of)[0]
            x = torch.cat([turned_keys, x[..., self.dim :]], -1)
        elif fits(x.shape[2]) and x.device.type == "cpu" and x.stride()[1:] == (x.shape[2], 1):
            native.rotate(numbers_of(x, self.angles))
        else:
            x = rotate_pairs(x, *self.angles)
        return keys if x.data_ptr() == keys.data_ptr() else keys.copy_(x)


def _apply(function: Function, keys: Tensor, angles: Angles) -> Tensor:
    """Keys ``[1, kv_heads, tokens, dim]``, rotated. Most functions take queries as well."""
    if "k" in signature(function).parameters:
        rotated: Tensor = function(keys[:, :0], keys, angles.cos, angles.sin)[1]
    else:
        rotated = function(keys, angles.cos, angles.sin)
    return rotated


@lru_cache(maxsize=64)
def rotated_dim(function: Function, rotary: int, head_dim: int) -> int:
    """How many numbers of a head the function takes: some cut a head themselves, where a part of it
    is rotated; others are given that part."""
    angle = torch.zeros(1, 1, rotary)
    try:
        _apply(function, torch.zeros(1, 1, 1, head_dim), Angles(angle, angle, None))
    except RuntimeError:
        return rotary
    return head_dim


@lru_cache(maxsize=64)
def rotates_halves(function: Function, dim: int) -> bool:
    """Whether ``function`` does to rows of ``dim`` what `rotate_pairs` does."""
    if dim % 2:
        return False
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = torch.randn(3, 1, 1, 4, dim, generator=generator)
    cos, sin = (torch.cat([part[..., : dim // 2]] * 2, -1) for part in (cos, sin))
    expected = _apply(function, x, Angles(cos[0], sin[0], None))
    found = rotate_pairs(x[0], cos[0, 0, :, : dim // 2], sin[0, 0, :, : dim // 2])
    return torch.allclose(expected[0], found, atol=1e-5)
