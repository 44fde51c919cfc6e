"""The configuration of a live model, its innermost module, and where its parts lie."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the decoder, also where the model has other towers."""
    return model.config.get_text_config(decoder=True)


def device_of(module: nn.Module) -> torch.device:
    """Of its first parameter, which `parameters` would look for long."""
    inner: nn.Module | None = module
    while inner is not None:
        for parameter in inner.__dict__["_parameters"].values():
            if parameter is not None:
                return cast(Tensor, parameter).device
        inner = next(iter(inner.__dict__["_modules"].values()), None)
    return next(module.parameters()).device


def innermost(model: nn.Module) -> nn.Module:
    """The model whose ``generate`` runs in the end, without what `torch.compile` and peft wrap."""
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if inner is None and hasattr(type(model), "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None or inner is model:
            return model
        model = inner
