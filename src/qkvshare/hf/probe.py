"""Probes: a few tokens read behind the context, whose queries tell what it is looked at for.

The model reads them on a shallow copy of the cache, so this works for any live cache and costs
about ``probes ÷ tokens`` of a prefill. SDPA gives no attention weights; the queries are taken on
their way into the attention function, after RoPE and whatever else the model does to them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..card.digest import TokenIds
from ..card.errors import UnsupportedModelError
from ..scorers import Glance, Scorer
from .layers import attention_layers, empty_cache, place_layer
from .state import State

_NAME = "qkvshare_probe"
# Chunks of the context, evenly spaced, that the model reads again where no focus is given.
_CHUNKS, _CHUNK = 4, 8
_found = threading.local()


def choose_probes(ids: TokenIds, focus: TokenIds | None) -> TokenIds:
    """The receiver's instruction where it is known, else a sample of the context."""
    if focus is not None:
        return focus
    if len(ids) <= _CHUNKS * _CHUNK:
        return ids
    stride = len(ids) // _CHUNKS
    chunks = [ids[at + stride - _CHUNK : at + stride] for at in range(0, _CHUNKS * stride, stride)]
    return np.concatenate(chunks)


def salience(state: State, scorer: Scorer, probes: TokenIds) -> list[Tensor]:
    """Salience of each layer's held tokens, ``[kv_heads, tokens]`` with mean 1, float32.

    The model's attention function is exchanged while the probes are read; other threads must not
    use the model meanwhile. Raises `UnsupportedModelError` for models without such a function.
    """
    model, known = state.model, len(state.ids)
    cache = empty_cache(model)
    for place, held, layer in zip(
        attention_layers(model, cache), state.held, state.layers, strict=True
    ):
        keep = min(known, held.keys.shape[1], (layer.window or known + 1) - 1)
        skip = held.keys.shape[1] - keep
        place_layer(place, held.keys[:, skip:], held.values[:, skip:], known)
    tokens = torch.from_numpy(probes).long()[None].to(model.device)
    scores: dict[int, Tensor] = {}
    with _observed(model, scores, scorer), torch.no_grad():
        cast(Any, model).get_decoder()(input_ids=tokens, past_key_values=cache, use_cache=True)
    if len(scores) != len(state.held):
        raise UnsupportedModelError(
            f"{type(model).__name__} lets {len(scores)} of its {len(state.held)} attention layers "
            "be observed, so its tokens cannot be scored. Choose an allocator that needs no "
            "scorer, such as 'uniform'."
        )
    out = []
    for number, held in enumerate(state.held):
        missing = held.keys.shape[1] - scores[number].shape[1]
        # A token that only a roll back can need has left the window: nobody looks at it.
        padded = torch.nn.functional.pad(scores[number], (missing, 0))
        out.append(padded / padded.mean().clamp(min=1e-30))
    return out


@contextmanager
def _observed(model: PreTrainedModel, scores: dict[int, Tensor], scorer: Scorer) -> Iterator[None]:
    before = model.config._attn_implementation
    _found.scores, _found.scorer = scores, scorer
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        del _found.scores, _found.scorer


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """SDPA; scores are taken in passing. ``query [1, heads, probes, head_dim]``."""
    heads, probes, dim = query.shape[1:]
    kv_heads, total = key.shape[1:3]
    if attention_mask is None:
        visible = torch.ones(probes, total, dtype=torch.bool, device=key.device).tril(
            total - probes
        )
    else:
        mask = attention_mask[0, 0, :, :total]
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    grouped = query[0].view(kv_heads, heads // kv_heads, probes, dim)
    scale = dim**-0.5 if scaling is None else scaling
    glance = Glance(grouped, key[0], visible, scale)
    _found.scores[module.layer_idx] = _found.scorer.score(glance).float()
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **arguments
    )


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
