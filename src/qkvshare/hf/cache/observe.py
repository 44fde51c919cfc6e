"""What a model keeps of its tokens, once for each model object."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card import Layer, StateTensor
from ...card.errors import IdentityError, UnsupportedModelError
from ..model.config import says, text_config
from ..model.text_only import forget_positions
from .looking import Observed, look

# What no short reading shows: faults of transformers itself beyond a window, by ``model_type``.
_FAULTS = {"moshi": "its own cache forgets tokens that its attention still looks at"}

_observed: WeakKeyDictionary[nn.Module, tuple[object, Observed]] = WeakKeyDictionary()


def observe(model: PreTrainedModel) -> Observed:
    """Once for each model object, and again when its configuration or its devices change.

    Reads 63 tokens in eight forward passes, and more where the model keeps states. Layers that
    compress windows of tokens are shown two of the longest. Raises
    `UnsupportedModelError`.
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
    try:
        return look(model, told=False)
    except UnsupportedModelError as error:
        try:
            return look(model, told=True)
        except UnsupportedModelError:
            raise error from None  # the usual way says more about the model


def positions(model: PreTrainedModel, start: int, count: int) -> dict[str, Tensor]:
    """What a forward pass needs besides ids ``[1, count]`` that begin at position ``start``."""
    if not observe(model).told:
        return {}
    return {"position_ids": torch.arange(start, start + count, device=model.device)[None]}


def require_geometry(
    model: PreTrainedModel, layers: list[Layer], states: list[StateTensor]
) -> Observed:
    """What the model keeps. Raises `IdentityError` unless its layers and states are these, a
    card's, and `UnsupportedModelError` as `observe`."""
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
    if states != observed.states:
        raise IdentityError(
            f"the card has {len(states)} states, the model {len(observed.states)}, or they are of "
            "other shapes or number formats."
        )
    return observed
