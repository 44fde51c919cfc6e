"""Rotary positions: taking keys back to before RoPE, and forward again.

The rotation is the model's own ``apply_rotary_pos_emb`` (partial or interleaved rotations come out
right by construction); its inverse is the same function with the sine negated, divided by the
square of the attention scaling that YaRN multiplies into cosine and sine (arXiv:2309.00071).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..card.errors import UnsupportedModelError
from .layers import decoder_layer, text_config

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
    """Rotates the keys of one layer to and from positions; all arithmetic in float32."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """Bind to ``layer`` of ``model``. Raises `UnsupportedModelError`."""
        rope_parameters(model)
        self._attention = decoder_layer(model, layer).self_attn
        self._embedding = cast(Any, model).get_decoder().rotary_emb
        kinds = getattr(text_config(model), "layer_types", None)
        nested = isinstance(getattr(self._embedding, "rope_type", None), dict)
        self._layer_type = {"layer_type": kinds[layer]} if nested and kinds else {}

    @property
    def is_identity(self) -> bool:
        """Whether the layer has no positions at all (NoPE layers, as in SmolLM3)."""
        return not getattr(self._attention, "use_rope", True)

    @cached_property
    def _apply(self) -> Callable[..., tuple[Tensor, Tensor]]:
        function = getattr(
            sys.modules[type(self._attention).__module__], "apply_rotary_pos_emb", None
        )
        if function is None:
            raise UnsupportedModelError(
                f"{type(self._attention).__name__} rotates keys in a way of its own; "
                "codecs that store keys before RoPE cannot serve it. Use the codec 'raw'."
            )
        return function  # type: ignore[no-any-return]

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys before RoPE ``[kv_heads, tokens, head_dim]`` to ``positions [tokens]``, float32."""
        return self._turn(keys, positions, 1.0)

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Undo `rotate`: keys as the cache holds them back to before RoPE, float32."""
        return self._turn(keys, positions, -1.0)

    def _turn(self, keys: Tensor, positions: Tensor, direction: float) -> Tensor:
        x = keys.float()[None]  # [1, kv_heads, tokens, head_dim]
        if self.is_identity:
            return x[0]
        cos, sin = self._embedding(x, positions[None].to(x.device), **self._layer_type)
        turned = self._apply(x[:, :0], x, cos, direction * sin)[1][0]  # no queries
        if direction > 0:
            return turned
        rotary = cos.shape[-1]  # of a partial rotation the rest was never scaled
        scale = (cos.square() + sin.square())[0, 0, 0]  # the square of the attention scaling
        return torch.cat([turned[..., :rotary] / scale, turned[..., rotary:]], dim=-1)
