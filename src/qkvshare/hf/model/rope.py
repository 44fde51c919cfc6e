"""Rotary positions: taking keys back to before RoPE, and forward again.

The rotation is the model's own ``apply_rotary_pos_emb`` (partial or interleaved rotations come out
right by construction). Its inverse is the same function with the sine negated, divided by the
square of the attention scaling that YaRN multiplies into cosine and sine (arXiv:2309.00071).
Nearly every model rotates the two halves of a head, and its function makes five copies of the keys
for that; where a trial shows this to be so, they are rotated in place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card.errors import UnsupportedModelError
from ...kernels.native import native, rows_span, span
from ...kernels.rotation import rotate_pairs
from .config import text_config

Positions = range | Tensor  # int64 ``[tokens]``
Function = Callable[..., Any]  # the model's ``apply_rotary_pos_emb``

# Angles of the first positions are kept with the model, so many more at a time: to find them takes
# all of torch's threads, which spin for 10 ms after it, while a card's decoder wants them.
_KEPT, _PAGE = 1 << 15, 1 << 10

# The frequencies of these types do not depend on how long the sequence has become.
STATIC_TYPES = {"default", "linear", "llama3", "proportional", "yarn"}


def rope_parameters(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration's RoPE parameters, one dictionary for all layers or one per layer type;
    empty for a model whose positions are of another kind.

    Raises `UnsupportedModelError` for types that change with length.
    """
    parameters = getattr(text_config(model), "rope_parameters", None) or {}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    nested = all(isinstance(value, dict) for value in parameters.values())
    for each in parameters.values() if nested else [parameters]:
        kind = each.get("rope_type", "default")
        if kind not in STATIC_TYPES:
            raise UnsupportedModelError(
                f"RoPE type {kind!r} changes its frequencies with the length of the text, so keys "
                f"cannot be carried; supported: {', '.join(sorted(STATIC_TYPES))}."
            )
    return parameters


class Rope:
    """Rotates a model's keys to and from positions; all arithmetic in float32.

    Rotations are kept as long as the object, since all layers of a kind share them.
    """

    def __init__(self, model: PreTrainedModel, numbers: Sequence[int]) -> None:
        """``numbers`` says which of the model's layers are the card's."""
        self._numbers = numbers
        self._rotated = bool(rope_parameters(model))
        decoder: nn.Module = cast(Any, model).get_decoder()
        if decoder not in _attention:  # to look at all modules takes longer than all else here
            _attention[decoder] = _attention_modules(decoder)
        self._attention = _attention[decoder]
        self._embedding: Any = getattr(decoder, "rotary_emb", None)
        kinds = getattr(text_config(model), "layer_types", None)
        self._kinds = (
            kinds if isinstance(getattr(self._embedding, "rope_type", None), dict) else None
        )
        self._rotations: dict[tuple[object, ...], Rotation] = {}

    def rotate(self, layer: int, keys: Tensor, positions: Positions, back: bool = False) -> Tensor:
        """Keys before RoPE ``[kv_heads, tokens, head_dim]`` to ``positions``, float32."""
        rotation = self.rotation(layer, positions, keys.shape[-1], keys.device, back)
        keys = keys.to(torch.float32, copy=True)
        return keys if rotation is None else rotation(keys)

    def unrotate(self, layer: int, keys: Tensor, positions: Positions) -> Tensor:
        """Undo `rotate`: keys as the cache holds them back to before RoPE, float32."""
        return self.rotate(layer, keys, positions, back=True)

    def rotation(
        self,
        layer: int,
        positions: Positions,
        head_dim: int,
        device: torch.device,
        back: bool = False,
    ) -> Rotation | None:
        """What rotates the keys of a layer in place; None for a layer without RoPE (NoPE).

        Raises `UnsupportedModelError`.
        """
        layer = self._numbers[layer]
        attention = self._attention.get(layer)
        if not self._rotated or not getattr(attention, "use_rope", True):  # as in SmolLM3
            return None
        if attention is None or self._embedding is None:
            raise UnsupportedModelError(
                f"layer {layer} rotates keys in a way of its own, which nothing here undoes."
            )
        function = cast(Function, _function(attention))
        kind = self._kinds and self._kinds[layer]
        # A range is known by its ends.
        at = positions if isinstance(positions, range) else positions.cpu().numpy().tobytes()
        key = kind, function, device, head_dim, back, at
        if key not in self._rotations:
            like = torch.empty(1, 1, 1, head_dim, device=device)
            angles = self._angles(kind, like, positions)
            angles = angles.inverse() if back else angles
            whole = angles.cos.shape[-1] == head_dim and _rotates_halves(function, head_dim)
            dim = _rotated_dim(function, angles.cos.shape[-1], head_dim)
            self._rotations[key] = Rotation(function, angles, whole, dim)
        return self._rotations[key]

    def _angles(self, kind: str | None, like: Tensor, positions: Positions) -> _Angles:
        """Of ``positions``: a range has the same bits whatever it is part of."""
        if not isinstance(positions, range):
            return self._computed(kind, like, positions)
        if positions.stop > _KEPT:
            return self._computed(kind, like, torch.arange(positions.start, positions.stop))
        made_of = [
            (at, -1 if at.is_inference() else at._version) for at in self._embedding.buffers()
        ]
        kept, key = _kept.setdefault(self._embedding, {}), (kind, like.device)
        known = kept.get(key)
        if known is not None and not all(map(_same, known[0], made_of)):
            known = None
        if known is None or known[1].cos.shape[1] < positions.stop:
            pages = [] if known is None else [known[1]]
            first = sum(page.cos.shape[1] for page in pages)
            for start in range(first, max(1, positions.stop), _PAGE):
                pages.append(self._computed(kind, like, torch.arange(start, start + _PAGE)))
            known = kept[key] = made_of, _Angles.join(pages)
        return known[1].part(positions)

    def _computed(self, kind: str | None, like: Tensor, positions: Tensor) -> _Angles:
        chosen = {"layer_type": kind} if kind else {}
        with torch.inference_mode(False):  # what is kept may be used outside of it
            return _Angles.of(*self._embedding(like, positions[None].to(like.device), **chosen))


class _Angles(NamedTuple):
    """Cosines and sines of positions, ``[1, tokens, rotary]``."""

    cos: Tensor
    sin: Tensor
    halves: tuple[Tensor, Tensor] | None  # ``[tokens, rotary / 2]``, where both halves are the same

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> _Angles:
        """With their halves, if those are the same."""
        both = [part[0].chunk(2, -1) for part in (cos, sin)]
        if cos.shape[-1] % 2 or not all(torch.equal(*halves) for halves in both):
            return cls(cos, sin, None)
        return cls(cos, sin, (both[0][0].contiguous(), both[1][0].contiguous()))

    @classmethod
    def join(cls, pages: list[_Angles]) -> _Angles:
        """One after the other."""
        cos, sin = torch.cat([at.cos for at in pages], 1), torch.cat([at.sin for at in pages], 1)
        return cls.of(cos, sin)

    def part(self, at: range) -> _Angles:
        """Of some of the positions; a view."""
        some = slice(at.start, at.stop)
        halves = None if self.halves is None else (self.halves[0][some], self.halves[1][some])
        return _Angles(self.cos[:, some], self.sin[:, some], halves)

    def inverse(self) -> _Angles:
        """What takes keys back."""
        scale = (self.cos.square() + self.sin.square())[:, :1]  # the attention scaling's square
        return _Angles.of(self.cos / scale, -self.sin / scale)


_attention: WeakKeyDictionary[nn.Module, dict[int, Any]] = WeakKeyDictionary()

# By embedding, then by kind of layer and device: the buffers that angles were made of, and those.
_kept: WeakKeyDictionary[nn.Module, dict[Any, tuple[list[tuple[Tensor, int]], _Angles]]]
_kept = WeakKeyDictionary()


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


@dataclass(frozen=True)
class Rotation:
    """Angles of a run of positions, and what the model does with them.

    Attributes:
        function: the model's own.
        halves: whether it rotates number ``i`` of a head with number ``i + head_dim / 2``.
        dim: how many numbers of a head it takes; the others stay.
    """

    function: Function
    of: _Angles
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
        elif native is not None and x.device.type == "cpu" and x.stride()[1:] == (x.shape[2], 1):
            cos, sin = (part[0].contiguous() for part in (self.of.cos, self.of.sin))
            native.rotate(rows_span(x), *x.shape[:2], x.stride(0), x.shape[2], span(cos), span(sin))
        else:
            x = rotate_pairs(x, *self.angles)
        return keys if x.data_ptr() == keys.data_ptr() else keys.copy_(x)


def _function(module: nn.Module) -> Function | None:
    """What the model's own file calls for RoPE."""
    names = vars(sys.modules[type(module).__module__])
    return cast("Function | None", names.get("apply_rotary_pos_emb"))


def _attention_modules(decoder: nn.Module) -> dict[int, Any]:
    """Those that know the number of their layer, and come from a file with RoPE."""
    found = dict[int, Any]()
    for module in decoder.modules():
        if "layer_idx" in vars(module) and _function(module) is not None:
            found.setdefault(cast(int, module.layer_idx), module)
    return found


def _apply(function: Function, keys: Tensor, angles: _Angles) -> Tensor:
    """Keys ``[1, kv_heads, tokens, dim]``, rotated. Most functions take queries as well."""
    if "k" in signature(function).parameters:
        rotated: Tensor = function(keys[:, :0], keys, angles.cos, angles.sin)[1]
    else:
        rotated = function(keys, angles.cos, angles.sin)
    return rotated


@lru_cache(maxsize=64)
def _rotated_dim(function: Function, rotary: int, head_dim: int) -> int:
    """How many numbers of a head the function takes: some cut a head themselves, where a part of it
    is rotated; others are given that part."""
    angle = torch.zeros(1, 1, rotary)
    try:
        _apply(function, torch.zeros(1, 1, 1, head_dim), _Angles(angle, angle, None))
    except RuntimeError:
        return rotary
    return head_dim


@lru_cache(maxsize=64)
def _rotates_halves(function: Function, dim: int) -> bool:
    """Whether ``function`` does to rows of ``dim`` what `rotate_pairs` does."""
    if dim % 2:
        return False
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = torch.randn(3, 1, 1, 4, dim, generator=generator)
    cos, sin = (torch.cat([part[..., : dim // 2]] * 2, -1) for part in (cos, sin))
    expected = _apply(function, x, _Angles(cos[0], sin[0], None))
    found = rotate_pairs(x[0], cos[0, 0, :, : dim // 2], sin[0, 0, :, : dim // 2])
    return torch.allclose(expected[0], found, atol=1e-5)
