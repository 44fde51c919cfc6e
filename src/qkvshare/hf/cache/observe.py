"""What a model keeps of its tokens, found by letting it read a few.

Nothing is assumed of a model's class or of the names in its configuration: its own cache shows
how many heads and numbers each layer keeps, and where. Three questions are answered by comparison.

- Can a codec take the positions out of a layer's keys? One token alone sees only itself, so its
  keys at two positions must differ by the rotation that `Rope` knows, and by nothing else.
- Is a text that was read in two parts the text? Otherwise no cache can be gone on from.
- Do the first layer's keys depend on token and position alone? Then they can prove which tokens a
  live cache was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from msgspec import structs
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ...card import Layer
from ...card.errors import IdentityError, UnsupportedModelError
from ..model.config import says, text_config
from ..model.rope import Rope
from ..model.text_only import forget_positions
from .layers import attention_layers, attention_numbers, describe, empty_cache

_FAR = 19  # the second position; rotations by it are large
# Relative error of a key that was rotated to another position, in any number format; where a
# rotation is not the model's the error is near 1.
_TOLERANCE = 0.05
# The same of a text that was read in two parts: roundings of many layers in bfloat16 add up, and
# may choose other experts. A text that cannot be gone on from is near 1.
_RESUMED = 0.3

# What no short reading shows: faults of transformers itself beyond a window, by ``model_type``.
_FAULTS = {"moshi": "its own cache forgets tokens that its attention still looks at"}

_observed: WeakKeyDictionary[nn.Module, tuple[object, Observed]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Observed:
    """What one model keeps.

    Attributes:
        layers: geometry of the layers that hold keys and values.
        numbers: which of the model's layers they are.
        devices: where each of them keeps them.
        provable: whether the first one's keys say which tokens they are of.
        empty: a cache of the model, to be left empty: to make one takes long.
    """

    layers: list[Layer]
    numbers: list[int]
    devices: list[torch.device]
    provable: bool
    empty: DynamicCache


def observe(model: PreTrainedModel) -> Observed:
    """Once for each model object, and again when its configuration or its devices change.

    Reads 43 tokens in six forward passes. Raises `UnsupportedModelError`.
    """
    seen = says(text_config(model)), model.device, getattr(model, "hf_device_map", None)
    known = _observed.get(model)
    if known is None or known[0] != seen:
        # A compiled model would be compiled for each of these lengths.
        eager = torch.compiler.set_stance("force_eager")
        with torch.inference_mode(False), torch.no_grad(), eager:
            known = _observed[model] = seen, _observe(model)
    return known[1]


def _observe(model: PreTrainedModel) -> Observed:
    if (fault := _FAULTS.get(text_config(model).model_type)) is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot go on from what it has read, even without a card: "
            f"{fault}. Hand over text instead."
        )
    forget_positions(model)
    size = text_config(model).vocab_size
    text = [at % size for at in (7, *range(5, 4 + _FAR), 7)]
    alone = text[-1:]
    try:
        cache = _read(model, alone)
        layers = [describe(number, layer) for number, layer in enumerate(attention_layers(cache))]
        whole, parts = _read(model, text), _read(model, text[: _FAR // 2], rest=text[_FAR // 2 :])
    except UnsupportedModelError:
        raise
    except Exception as error:  # code of somebody else, which may do anything
        raise UnsupportedModelError(
            f"{type(model).__name__} does not read tokens into its own cache "
            f"({type(error).__name__}: {error}). Hand over text instead."
        ) from error
    _require_resumable(model, _keys(whole), _keys(parts))
    first = _keys(cache)
    try:
        near, far = (_keys(_read(model, alone, [at])) for at in (0, _FAR))
    except Exception:  # it takes no positions: nothing can be compared
        near, far = first, []
    if not all(map(_same, near, first)):
        raise UnsupportedModelError(
            f"{type(model).__name__} reads the first token at another position than 0 unless it is "
            "told, as generate does: a cache does not say which. Hand over text instead."
        )
    numbers = attention_numbers(cache)
    rope = Rope(model, numbers)
    layers = [
        structs.replace(layer, placed=not far or not _rotates(rope, number, first, far))
        for number, layer in enumerate(layers)
    ]
    provable = bool(far) and numbers[0] == 0 and _same(_keys(whole)[0], far[0])
    devices = [keys.device for keys in first]
    return Observed(layers, numbers, devices, provable, empty_cache(model))


def _read(
    model: PreTrainedModel,
    ids: list[int],
    positions: list[int] | None = None,
    rest: Sequence[int] = (),
) -> DynamicCache:
    """A cache that has read ``ids``, and then ``rest``."""
    device, cache = model.device, empty_cache(model)
    told = {} if positions is None else {"position_ids": torch.tensor([positions], device=device)}
    for part in (ids, rest):
        if part:
            given: Any = torch.tensor([part], device=device)
            cast(Any, model)(input_ids=given, past_key_values=cache, use_cache=True, **told)
    return cache


def _require_resumable(model: PreTrainedModel, whole: list[Tensor], parts: list[Tensor]) -> None:
    """Raise `UnsupportedModelError` where a text read in two parts is not the text."""
    for number, (one, other) in enumerate(zip(whole, parts, strict=True)):
        if not _same(one, other, _RESUMED):
            raise UnsupportedModelError(
                f"layer {number} of {type(model).__name__} computes other keys when a text is read "
                "in two parts than when it is read at once, without any card: what it has read "
                "cannot be gone on from. Hand over text instead."
            )


def _keys(cache: DynamicCache) -> list[Tensor]:
    """Of the last token, ``[kv_heads, 1, head_dim]`` each."""
    return [cast(Tensor, layer.keys)[0, :, -1:].float() for layer in attention_layers(cache)]


def _rotates(rope: Rope, number: int, first: list[Tensor], far: list[Tensor]) -> bool:
    """Whether ``rope`` brings a layer's key from position 0 to `_FAR`."""
    try:
        plain = rope.unrotate(number, first[number], range(1))
        return _same(rope.rotate(number, plain, range(_FAR, _FAR + 1)), far[number])
    except Exception:  # the model has functions and modules of other shapes
        return False


def _same(one: Tensor, other: Tensor, tolerance: float = _TOLERANCE) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


def require_geometry(model: PreTrainedModel, layers: list[Layer]) -> Observed:
    """What the model keeps. Raises `IdentityError` unless its layers are ``layers``, a card's, and
    `UnsupportedModelError` as `observe`."""
    observed = observe(model)
    if len(layers) != len(observed.layers):
        raise IdentityError(f"the card has {len(layers)} layers, the model {len(observed.layers)}.")
    for number, (layer, own) in enumerate(zip(layers, observed.layers, strict=True)):
        found, expected = (
            (at.window, at.kv_heads, at.head_dim, at.v_head_dim, at.placed) for at in (layer, own)
        )
        if found != expected:
            raise IdentityError(
                f"layer {number} (window, KV heads, head dims of keys and values, whether keys "
                f"have their positions): the card has {found}, the model {expected}."
            )
    return observed
