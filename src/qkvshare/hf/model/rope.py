"""Rotary positions: taking keys back to before RoPE, and forward again.

The rotation is the model's own ``apply_rotary_pos_emb`` (partial or interleaved rotations come out
right by construction). Its inverse is the same function with the sine negated, divided by the
square of the attention scaling that YaRN multiplies into cosine and sine (arXiv:2309.00071).
Nearly every model rotates the two halves of a head, and its function makes five copies of the keys
for that; where a trial shows this to be so, they are rotated in place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
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

# Angles of the first positions are kept with the model, so many more at a time: to find them takes
# all of torch's threads, which spin for 10 ms after it, while a card's decoder wants them.
_KEPT, _PAGE = 1 << 15, 1 << 10

# The frequencies of these types do not depend on how long the sequence has become.
STATIC_TYPES = {"default", "linear", "llama3", "yarn"}


def rope_parameters(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration's RoPE parameters, one dictionary for all layers or one per layer type.

    Raises `UnsupportedModelError` for models without, and for types that change with length.
    """
    parameters = getattr(text_config(model), "rope_parameters", None)
    if not parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no rope_parameters in its config; a card needs rotary "
            "positions to place keys. Hand over text instead."
        )
    parameters = {key: value for key, value in parameters.items() if value is not None}
    nested = "rope_type" not in parameters
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

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `UnsupportedModelError`."""
        rope_parameters(model)
        decoder = cast(Any, model).get_decoder()
        self._layers, self._embedding = list(decoder.layers), decoder.rotary_emb
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
        attention = self._layers[layer].self_attn
        if not getattr(attention, "use_rope", True):  # as in SmolLM3
            return None
        function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if function is None:
            raise UnsupportedModelError(
                f"{type(attention).__name__} rotates keys in a way of its own; "
                "codecs that store keys before RoPE cannot serve it. Use the codec 'raw'."
            )
        kind = self._kinds and self._kinds[layer]
        # A range is known by its ends.
        at = positions if isinstance(positions, range) else positions.cpu().numpy().tobytes()
        key = kind, function, device, head_dim, back, at
        if key not in self._rotations:
            like = torch.empty(1, 1, 1, head_dim, device=device)
            angles = self._angles(kind, like, positions)
            angles = angles.inverse() if back else angles
            whole = angles.cos.shape[-1] == head_dim and _rotates_halves(function, head_dim)
            self._rotations[key] = Rotation(function, angles, whole)
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
    """

    function: Callable[..., Any]
    of: _Angles
    halves: bool

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``[tokens, head_dim / 2]``, where `halves` are rotated alike."""
        return self.of.halves if self.halves else None

    def __call__(self, keys: Tensor) -> Tensor:
        """Rotate ``keys [kv_heads, tokens, head_dim]`` in place; also returned."""
        x = keys.float()
        if self.angles is None:
            x = self.function(x[None, :0], x[None], self.of.cos, self.of.sin)[1][0]  # no queries
        elif native is not None and x.device.type == "cpu" and x.stride()[1:] == (x.shape[2], 1):
            cos, sin = (part[0].contiguous() for part in (self.of.cos, self.of.sin))
            native.rotate(rows_span(x), *x.shape[:2], x.stride(0), x.shape[2], span(cos), span(sin))
        else:
            x = rotate_pairs(x, *self.angles)
        return keys if x.data_ptr() == keys.data_ptr() else keys.copy_(x)


@lru_cache(maxsize=64)
def _rotates_halves(function: Callable[..., Any], dim: int) -> bool:
    """Whether ``function`` does to rows of ``dim`` what `rotate_pairs` does."""
    if dim % 2:
        return False
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = torch.randn(3, 1, 1, 4, dim, generator=generator)
    cos, sin = (torch.cat([part[..., : dim // 2]] * 2, -1) for part in (cos, sin))
    expected = function(x[:, :0], x, cos[0], sin[0])[1]
    found = rotate_pairs(x[0], cos[0, 0, :, : dim // 2], sin[0, 0, :, : dim // 2])
    return torch.allclose(expected[0], found, atol=1e-5)
