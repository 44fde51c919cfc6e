"""Rotary positions: taking keys back to before RoPE, and forward again.

The rotation is the model's own ``apply_rotary_pos_emb`` (partial or interleaved rotations come out
right by construction); its inverse is the same function with the sine negated, divided by the
square of the attention scaling that YaRN multiplies into cosine and sine (arXiv:2309.00071).
Nearly every model turns the two halves of a head, and its function makes five copies of the keys
for that; where a trial shows this to be so, they are turned in one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..card.errors import UnsupportedModelError
from .layers import text_config

Turn = Callable[[Tensor], Tensor]
Positions = range | Tensor  # int64 ``[tokens]``

# Numbers that torch leaves to one thread; and below so many it is slower to call on others, who may
# be asleep, than to take them piece by piece.
_UNDIVIDED, _ALONE = 1 << 15, 1 << 18

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

    Sines and cosines are kept as long as the object, since all layers of a kind share them.
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
        self._turns: dict[tuple[object, ...], Turn] = {}

    def rotate(self, layer: int, keys: Tensor, positions: Positions) -> Tensor:
        """Keys before RoPE ``[kv_heads, tokens, head_dim]`` to ``positions``, float32."""
        return self.turn(layer, positions, keys)(keys.to(torch.float32, copy=True))

    def unrotate(self, layer: int, keys: Tensor, positions: Positions) -> Tensor:
        """Undo `rotate`: keys as the cache holds them back to before RoPE, float32."""
        return self.turn(layer, positions, keys, back=True)(keys.to(torch.float32, copy=True))

    def turn(self, layer: int, positions: Positions, like: Tensor, back: bool = False) -> Turn:
        """What turns keys such as ``like`` in place; found once for all layers that share it."""
        attention = self._layers[layer].self_attn
        if not getattr(attention, "use_rope", True):  # NoPE layers, as in SmolLM3
            return lambda keys: keys
        function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if function is None:
            raise UnsupportedModelError(
                f"{type(attention).__name__} rotates keys in a way of its own; "
                "codecs that store keys before RoPE cannot serve it. Use the codec 'raw'."
            )
        kind = self._kinds and self._kinds[layer]
        # A range is known by its ends.
        at = positions if isinstance(positions, range) else positions.cpu().numpy().tobytes()
        key = kind, function, like.device, like.shape[-1], back, at
        if key not in self._turns:
            one = like.new_empty(1, 1, 1, like.shape[-1], dtype=torch.float32)
            cos, sin = self._angles(kind, one, positions, back)
            halves = cos.shape[-1] == like.shape[-1] and _turns_halves(function, like.shape[-1])
            self._turns[key] = _Turn(function, cos, sin, halves)
        return self._turns[key]

    def _angles(
        self, kind: str | None, x: Tensor, positions: Positions, back: bool
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[1, tokens, rotary]``; with ``back`` those of the inverse."""
        chosen = {"layer_type": kind} if kind else {}
        at = positions
        if isinstance(at, range):
            at = torch.arange(at.start, at.stop)
        at, most = at[None].to(x.device), len(at)
        if x.device.type == "cpu" and most * x.shape[-1] <= _ALONE:
            most = _UNDIVIDED // x.shape[-1] or 1
        found = [self._embedding(x, some, **chosen) for some in torch.split(at, most, 1)]
        cos, sin = map(torch.cat, zip(*found, strict=True), (1, 1)) if found[1:] else found[0]
        if back:
            scale = (cos.square() + sin.square())[:, :1]  # the square of the attention scaling
            cos, sin = cos / scale, -sin / scale
        return cos, sin


@dataclass(frozen=True)
class _Turn:
    """Cosines and sines of a run of positions, and what the model does with them."""

    function: Callable[..., Any]
    cos: Tensor
    sin: Tensor
    halves: bool

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``[tokens, head_dim / 2]``, where both halves have the same."""
        both = [part[0].chunk(2, -1) for part in (self.cos, self.sin)]
        if not self.halves or not all(torch.equal(*halves) for halves in both):
            return None
        cos, sin = (one.contiguous() for one, _ in both)
        return cos, sin

    def __call__(self, keys: Tensor) -> Tensor:
        """Turn ``keys [kv_heads, tokens, head_dim]`` in place; also returned."""
        x = keys.float()[None]
        if self.halves:
            _turn_halves(x, self.cos, self.sin)
        else:
            x = self.function(x[:, :0], x, self.cos, self.sin)[1]  # no queries
        return keys if x.data_ptr() == keys.data_ptr() else keys.copy_(x[0])


@lru_cache(maxsize=64)
def _turns_halves(function: Callable[..., Any], dim: int) -> bool:
    """Whether ``function`` does to rows of ``dim`` what `_turn_halves` does with any angles."""
    if dim % 2:
        return False
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = torch.randn(3, 1, 1, 4, dim, generator=generator)
    expected = function(x[:, :0], x, cos[0], sin[0])[1]
    _turn_halves(x, cos[0], sin[0])
    return torch.allclose(expected, x, atol=1e-5)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn number ``i`` of a head with number ``i + head_dim / 2``, in place."""
    _, heads, tokens, dim = x.shape
    half = dim // 2
    if x.device.type == "cpu" and x.stride()[2:] == (dim, 1):
        from ..kernels.cpu_turn import turn  # compiles or loads, so at the first use only

        apart = x.stride(1)
        flat = x.as_strided(((heads - 1) * apart + tokens * dim,), (1,))
        turn(flat.detach().numpy(), heads, apart, cos[0].numpy(), sin[0].numpy())
        return
    first, second, cos, sin = x[..., :half], x[..., half:], cos[:, None], sin[:, None]
    before = first.clone()
    first.mul_(cos[..., :half]).addcmul_(second, sin[..., :half], value=-1)
    second.mul_(cos[..., half:]).addcmul_(before, sin[..., half:])
