"""Rotary positions: taking keys back to before RoPE, and forward again.

The rotation is the model's own ``apply_rotary_pos_emb`` (partial or interleaved rotations come out
right by construction). Its inverse is the same function with the sine negated, divided by the
square of the attention scaling that YaRN multiplies into cosine and sine (arXiv:2309.00071).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card.errors import UnsupportedModelError
from .config import text_config
from .rotation import Angles, Function, Rotation, rotated_dim, rotates_halves

Positions = range | Tensor  # int64 ``[tokens]``

# Angles of the first positions are kept with the model, so many more at a time: to find them takes
# all of torch's threads, which spin for 10 ms after it, while a card's decoder wants them.
_KEPT, _PAGE = 1 << 15, 1 << 10

# The frequencies of these types do not depend on how long the sequence has become.
STATIC_TYPES = {"default", "linear", "llama3", "proportional", "yarn"}
# Those of these types are others beyond a length, see `length_limit`.
CHANGING_TYPES = {"dynamic", "longrope"}


def rope_parameters(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration's RoPE parameters, one dictionary for all layers or one per layer type;
    empty for a model whose positions are of another kind.

    Raises `UnsupportedModelError` for a type that is not known here.
    """
    parameters = getattr(text_config(model), "rope_parameters", None) or {}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    for each in _each(parameters):
        kind = each.get("rope_type", "default")
        if kind not in STATIC_TYPES | CHANGING_TYPES:
            raise UnsupportedModelError(
                f"RoPE type {kind!r} is not known here, so keys cannot be carried; supported: "
                f"{', '.join(sorted(STATIC_TYPES | CHANGING_TYPES))}."
            )
    return parameters


def _each(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary, or those of all layer types."""
    nested = all(isinstance(value, dict) for value in parameters.values())
    return [*parameters.values()] if nested else [parameters]


def length_limit(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads; of RoPE types that change with length, the most that it
    reads at the frequencies of short texts. None where it says nothing.

    Beyond them all keys would be others, those that a cache has from before, too.
    """
    config = text_config(model)
    found = [getattr(config, "max_position_embeddings", None)]
    for each in _each(rope_parameters(model)):
        if each.get("rope_type") == "longrope":
            found.append(each.get("original_max_position_embeddings"))
    return min((limit for limit in found if limit is not None), default=None)


class Rope:
    """Rotates a model's keys to and from positions; all arithmetic in float32.

    Rotations are kept as long as the object, since all layers of a kind share them.
    """

    def __init__(self, model: PreTrainedModel, numbers: Sequence[int]) -> None:
        """``numbers`` says which of the model's layers are the card's."""
        self._numbers = numbers
        parameters = rope_parameters(model)
        self._rotated = bool(parameters)
        kinds_of_rope = {each.get("rope_type") for each in _each(parameters)}
        self._changes = not kinds_of_rope.isdisjoint(CHANGING_TYPES)
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
        if attention is None or self._embedding is None or self._changes:
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
            whole = angles.cos.shape[-1] == head_dim and rotates_halves(function, head_dim)
            dim = rotated_dim(function, angles.cos.shape[-1], head_dim)
            self._rotations[key] = Rotation(function, angles, whole, dim)
        return self._rotations[key]

    def _angles(self, kind: str | None, like: Tensor, positions: Positions) -> Angles:
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
            known = kept[key] = made_of, Angles.join(pages)
        return known[1].part(positions)

    def _computed(self, kind: str | None, like: Tensor, positions: Tensor) -> Angles:
        chosen = {"layer_type": kind} if kind else {}
        with torch.inference_mode(False):  # what is kept may be used outside of it
            return Angles.of(*self._embedding(like, positions[None].to(like.device), **chosen))


_attention: WeakKeyDictionary[nn.Module, dict[int, Any]] = WeakKeyDictionary()

# By embedding, then by kind of layer and device: the buffers that angles were made of, and those.
_kept: WeakKeyDictionary[nn.Module, dict[Any, tuple[list[tuple[Tensor, int]], Angles]]]
_kept = WeakKeyDictionary()


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


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
