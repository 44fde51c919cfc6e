"""What a model may take in beside token ids, so that ids alone do not say what a cache is of.

Pictures and sound behind placeholder tokens, prompt vectors of an adapter, dropout, adapters that
some tokens switch on, and positions that an earlier picture has shifted.
"""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ...card.digest import TokenIds
from ...card.errors import PromptError, UnsupportedModelError
from .config import text_config

# Configurations name the token that stands for a picture so: ``image_token_id`` and the like. Those
# that only begin or end a picture (``vision_start_token_id``) are tokens as others are.
_PLACEHOLDER = re.compile(
    r"(image|img|video|audio|speech|vision)(_pad|_context|_latent|_prompt|_delay)?_token_(id|index)"
)

_shifted: WeakKeyDictionary[nn.Module, list[ref[nn.Module]]] = WeakKeyDictionary()


def require_no_dropout(training: bool) -> None:
    """Raise `UnsupportedModelError` for a model of which a part is in training mode."""
    if training:
        raise UnsupportedModelError(
            "the model, or a part of it, is in training mode, where dropout makes its numbers "
            "random and gradient checkpointing keeps no cache. Call model.eval() first."
        )


def require_no_prompt_vectors(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` for adapters that put vectors in front of the tokens."""
    for config in _active_configs(model):
        if getattr(config, "is_prompt_learning", False):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise UnsupportedModelError(
                f"the model has an active adapter of type {kind} (prompt learning), which puts "
                "vectors of its own in front of the tokens; a card carries tokens only. Hand over "
                "text instead."
            )


def require_text(model: PreTrainedModel, ids: TokenIds) -> None:
    """Raise `PromptError` where the ``ids`` of a card do not say all that its cache is of."""
    for name, token in {**_placeholders(model.config), **_placeholders(text_config(model))}.items():
        if (at := np.flatnonzero(ids == token)).size:
            raise PromptError(
                f"token {at[0]} is {token}, the model's {name}: it stands for a picture, a video "
                "or a sound, and a card carries text only. Hand over the context without it."
            )
    for config in _active_configs(model):
        tokens = getattr(config, "alora_invocation_tokens", None)
        if tokens and (found := _begins(ids, np.asarray(tokens))) is not None:
            raise PromptError(
                f"token {found} begins the tokens that switch the active adapter on (aLoRA), and "
                "who goes on from the card would not see them. Capture what comes before them, "
                "and pass them with the new tokens."
            )


def forget_positions(model: PreTrainedModel) -> None:
    """Drop the shift of positions that a model of the Qwen-VL family keeps from its last picture,
    and would add to a text without one."""
    if model not in _shifted:
        _shifted[model] = [ref(at) for at in model.modules() if "rope_deltas" in vars(at)]
    for owner in _shifted[model]:
        if (module := owner()) is not None:
            vars(module)["rope_deltas"] = None


def _placeholders(config: Any) -> dict[str, int]:
    """Names and ids of the tokens that stand for something else."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, int) and _PLACEHOLDER.fullmatch(name)
    }


def _active_configs(model: PreTrainedModel) -> list[Any]:
    """Of the adapters in force; of all where the model does not say which are."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return []
    try:
        active: Any = model.active_adapters
        active = active() if callable(active) else active
    except ValueError:  # the inner model of a PeftModel does not know
        active = list(configs)
    return [configs[name] for name in active if name in configs]


def _begins(ids: TokenIds, tokens: TokenIds) -> int | None:
    """Where in ``ids`` all ``tokens`` follow each other, or a beginning of them at the end."""
    for at in np.flatnonzero(ids == tokens[0]):
        some = ids[at : at + len(tokens)]
        if np.array_equal(some, tokens[: len(some)]):
            return int(at)
    return None
