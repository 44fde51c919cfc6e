"""The configuration of a live model, its innermost module, and where its parts lie."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the decoder, also where the model has other towers."""
    return model.config.get_text_config(decoder=True)


def says(config: Any) -> str:
    """All that a configuration says, but for how attention is computed, which may be switched."""
    return repr({key: at for key, at in vars(config).items() if not key.startswith("_attn")})


def innermost(model: nn.Module) -> nn.Module:
    """The model whose ``generate`` runs in the end, without what `torch.compile` and peft wrap."""
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if inner is None and hasattr(type(model), "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None or inner is model:
            return model
        model = inner
